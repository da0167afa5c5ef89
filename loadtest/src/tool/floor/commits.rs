//! Inserts into a table with one index, and pages of it: what a durable send and a read cost at
//! least, in the database that the server under test uses.

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

/// Rows of a commit at most, as in the real server.
const BATCH_MAX: usize = 128;
/// Inserts that wait at most.
const WAITING_MAX: usize = 4096;
/// How long pages are read, after a second of warm-up.
const READ: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);
/// How long single rows are measured.
const SINGLE: Duration = Duration::from_secs(1);
/// Rows that are there when pages are read.
const ROWS: usize = 10_000;

const ROW: &str = "A message of ordinary length.";

type Waiting = (String, oneshot::Sender<()>);

/// A connection to the table, which it makes.
enum Table {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Table {
    async fn open(url: &str) -> Result<Self, sqlx::Error> {
        if url.starts_with("postgres:") {
            let mut connection = PgConnection::connect(url).await?;
            let sql = "CREATE TABLE IF NOT EXISTS loadtest_floor (id BIGSERIAL PRIMARY KEY, text TEXT NOT NULL)";
            connection.execute(sql).await?;
            return Ok(Self::Postgres(connection));
        }
        // As careful as the real server.
        let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let mut connection = options.connect().await?;
        let sql = "CREATE TABLE IF NOT EXISTS loadtest_floor (id INTEGER PRIMARY KEY, text TEXT NOT NULL)";
        connection.execute(sql).await?;
        Ok(Self::Sqlite(connection))
    }

    /// Commits these rows together.
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

    /// Reads the newest rows. How many there were.
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

/// Takes inserts, and commits what is there together. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Commits {
    waiting: mpsc::Sender<Waiting>,
    _task: TaskTracker,
}

impl Commits {
    /// Connects and makes the table.
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

    /// Inserts a row; returns once it is durable, and `None` if it will never be.
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
            // Those who wait see that nobody will tell them.
            return;
        }
        for done in done {
            let _ = done.send(());
        }
    }
}

/// Pages of rows that `readers` connections read by the index, each waiting for its own.
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
    for each in reading.join_all().await {
        each?;
    }
    meter.stop();
    Ok(Driven::of(&meter.summary(), 0.0))
}

/// Puts rows into a table that has none yet.
async fn fill(url: &str) -> Result<(), sqlx::Error> {
    let mut table = Table::open(url).await?;
    if table.page(1).await? == 0 {
        table.insert(vec![ROW.to_owned(); ROWS]).await?;
    }
    Ok(())
}

/// Rows a second that one connection commits one by one.
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
    async fn there_is_something_to_read_before_anything_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("floor.db").display());
        for _ in 0..2 {
            fill(&url).await.unwrap();
            assert_eq!(Table::open(&url).await.unwrap().page(u32::MAX).await.unwrap(), ROWS);
        }
    }

    #[tokio::test]
    async fn rows_are_inserted_and_read_in_a_file_of_ones_own() {
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
