//! Inserts into a table with one index, and reads of its pages. They are the minimum cost of a
//! durable send and of a read, in the database that the server under test uses.

use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::drive::Driven;
use crate::tool::arith::{ratio, real};
use crate::tool::meter::Meter;

/// Most rows of a commit; the same as in the real server.
const BATCH_MAX: usize = 128;
/// Capacity of the queue of inserts.
const WAITING_MAX: usize = 4096;
/// Measured duration of page reads, after the warm-up.
const READ: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);
/// Measured duration of single-row commits.
const SINGLE: Duration = Duration::from_secs(1);
/// Rows of the table before pages are read.
const ROWS: usize = 10_000;

/// Text of each row.
const ROW: &str = "A message of ordinary length.";

/// A row to insert, and the sender that reports its commit.
type Waiting = (String, oneshot::Sender<()>);

/// A connection to the table.
enum Table {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Table {
    /// Connects, and creates the table if it does not exist.
    async fn open(url: &str) -> Result<Self, sqlx::Error> {
        if url.starts_with("postgres:") {
            let mut connection = PgConnection::connect(url).await?;
            let sql = "CREATE TABLE IF NOT EXISTS loadtest_floor \
                       (id BIGSERIAL PRIMARY KEY, text TEXT NOT NULL)";
            connection.execute(sql).await?;
            return Ok(Self::Postgres(connection));
        }

        // The same durability as in the real server.
        let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let mut connection = options.connect().await?;
        let sql = "CREATE TABLE IF NOT EXISTS loadtest_floor \
                   (id INTEGER PRIMARY KEY, text TEXT NOT NULL)";
        connection.execute(sql).await?;
        Ok(Self::Sqlite(connection))
    }

    /// Inserts these rows in one commit.
    async fn insert(&mut self, texts: Vec<String>) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => {
                let sql = "INSERT INTO loadtest_floor (text) SELECT * FROM UNNEST($1::text[])";
                sqlx::query(sql).bind(texts).execute(connection).await.map(drop)
            }
            Self::Sqlite(connection) => {
                let sql = "INSERT INTO loadtest_floor (text) SELECT value FROM json_each($1)";
                sqlx::query(sql).bind(json!(texts).to_string()).execute(connection).await.map(drop)
            }
        }
    }

    /// Reads the newest `rows` rows. Returns how many there were.
    async fn page(&mut self, rows: u32) -> Result<usize, sqlx::Error> {
        const PAGE: &str =
            "SELECT id, text FROM loadtest_floor WHERE id > $1 ORDER BY id DESC LIMIT $2";
        let rows = i64::from(rows);

        match self {
            Self::Postgres(connection) => sqlx::query(PAGE)
                .bind(0_i64)
                .bind(rows)
                .fetch_all(connection)
                .await
                .map(|rows| rows.len()),
            Self::Sqlite(connection) => sqlx::query(PAGE)
                .bind(0_i64)
                .bind(rows)
                .fetch_all(connection)
                .await
                .map(|rows| rows.len()),
        }
    }
}

/// Groups queued inserts into commits. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Commits {
    waiting: mpsc::Sender<Waiting>,
    _task: TaskTracker,
}

impl Commits {
    /// Connects and creates the table.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn to_database(url: &str) -> Result<Self, String> {
        let table = Table::open(url).await.map_err(|error| error.to_string())?;
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        let task = TaskTracker::new();
        task.spawn(commit_to(table, inbox));
        Ok(Self { waiting, _task: task })
    }

    /// Inserts a row. Returns once it is durable, or `None` if the insert failed.
    pub async fn insert(&self, text: String) -> Option<()> {
        let (done, durable) = oneshot::channel();
        self.waiting.send((text, done)).await.ok()?;
        durable.await.ok()
    }
}

async fn commit_to(mut table: Table, mut inbox: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (texts, done): (Vec<String>, Vec<_>) = batch.drain(..).unzip();
        if table.insert(texts).await.is_err() {
            // Dropping the senders reports the failure to the waiting inserts.
            return;
        }
        for done in done {
            let _ = done.send(());
        }
    }
}

/// Measures page reads by the index on `readers` connections; each reads its next page when the
/// previous one has arrived.
///
/// # Errors
/// If the database does not answer.
pub async fn pages(url: &str, readers: usize, rows: u32) -> Result<Driven, String> {
    fill(url).await.map_err(|error| error.to_string())?;

    let (meter, mut reading) = (Meter::new("floor", WARM_UP)?, JoinSet::new());
    let until = Instant::now() + WARM_UP + READ;
    for _ in 0..readers {
        let (meter, mut table) =
            (meter.clone(), Table::open(url).await.map_err(|error| error.to_string())?);
        reading.spawn(async move {
            while Instant::now() < until {
                let began = Instant::now();
                table.page(rows).await.map_err(|error| error.to_string())?;
                meter.record(began.elapsed());
            }
            Ok::<(), String>(())
        });
    }

    for result in reading.join_all().await {
        result?;
    }
    meter.stop();
    Ok(Driven::of(&meter.summary(), 0.0))
}

/// Inserts [`ROWS`] rows if the table is empty.
async fn fill(url: &str) -> Result<(), sqlx::Error> {
    let mut table = Table::open(url).await?;
    if table.page(1).await? == 0 {
        table.insert(vec![ROW.to_owned(); ROWS]).await?;
    }
    Ok(())
}

/// Measures commits of one row each, one at a time. Returns the commits per second.
///
/// # Errors
/// If the database does not answer.
pub async fn single_rows(url: &str) -> Result<f64, String> {
    let mut table = Table::open(url).await.map_err(|error| error.to_string())?;
    let (began, mut count) = (Instant::now(), 0);

    while began.elapsed() < SINGLE {
        table.insert(vec![ROW.to_owned()]).await.map_err(|error| error.to_string())?;
        count += 1;
    }
    Ok(ratio(real(count), began.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fill_inserts_rows_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("floor.db").display());
        for _ in 0..2 {
            fill(&url).await.unwrap();
            assert_eq!(Table::open(&url).await.unwrap().page(u32::MAX).await.unwrap(), ROWS);
        }
    }

    #[tokio::test]
    async fn inserted_rows_are_readable() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("floor.db").display());
        let commits = Commits::to_database(&url).await.unwrap();
        assert_eq!(commits.insert("it's \"so\"".to_owned()).await, Some(()));
        let Ok(Table::Sqlite(mut connection)) = Table::open(&url).await else {
            panic!("not SQLite")
        };
        let texts: Vec<String> = sqlx::query_scalar("SELECT text FROM loadtest_floor")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        assert_eq!(texts, ["it's \"so\""]);
        assert_eq!(Table::Sqlite(connection).page(50).await.unwrap(), 1);
    }
}
