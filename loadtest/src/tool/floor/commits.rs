//! Inserts into a table with one index, or lines at the end of a file: what a durable send costs at least.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};
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
const SINGLE: Duration = Duration::from_secs(2);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS loadtest_floor (id BIGSERIAL PRIMARY KEY, text TEXT NOT NULL)";

type Waiting = (String, oneshot::Sender<()>);

/// Takes inserts, and commits what is there together. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Commits {
    waiting: mpsc::Sender<Waiting>,
    _task: TaskTracker,
}

async fn connect(url: &str) -> Result<PgConnection, String> {
    let mut connection = PgConnection::connect(url).await.map_err(|error| error.to_string())?;
    connection.execute(CREATE).await.map_err(|error| error.to_string())?;
    Ok(connection)
}

impl Commits {
    /// Connects and makes the table.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn to_database(url: &str) -> Result<Self, String> {
        let connection = connect(url).await?;
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        let task = TaskTracker::new();
        task.spawn(commit_on(connection, inbox));
        Ok(Self { waiting, _task: task })
    }

    /// Makes the file.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn to_file(path: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(path).map_err(|error| error.to_string())?;
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        let task = TaskTracker::new();
        task.spawn_blocking(|| append_to(file, inbox));
        Ok(Self { waiting, _task: task })
    }

    /// Inserts a row; returns once it is durable, and `None` if it will never be.
    pub async fn insert(&self, text: String) -> Option<()> {
        let (done, durable) = oneshot::channel();
        self.waiting.send((text, done)).await.ok()?;
        durable.await.ok()
    }
}

async fn commit_on(mut connection: PgConnection, mut inbox: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (texts, done): (Vec<String>, Vec<_>) = batch.drain(..).unzip();
        let sql = "INSERT INTO loadtest_floor (text) SELECT * FROM UNNEST($1::text[])";
        if sqlx::query(sql).bind(texts).execute(&mut connection).await.is_err() {
            // Those who wait see that nobody will tell them.
            return;
        }
        for done in done {
            let _ = done.send(());
        }
    }
}

/// As a database without tables would: all that is there in one write, then one sync.
fn append_to(mut file: std::fs::File, mut inbox: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let mut lines = String::new();
        for (text, _) in &batch {
            lines.push_str(text);
            lines.push('\n');
        }
        if file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        for (_, done) in batch.drain(..) {
            let _ = done.send(());
        }
    }
}

/// Pages of rows that `readers` connections read by the index, each waiting for its own.
///
/// # Errors
/// If the database does not answer.
pub async fn pages(url: &str, readers: usize, rows: u32) -> Result<Driven, String> {
    let (meter, mut reading) = (Meter::new("floor", WARM_UP)?, JoinSet::new());
    let until = Instant::now() + WARM_UP + READ;
    for _ in 0..readers {
        let (meter, mut connection) = (meter.clone(), connect(url).await?);
        reading.spawn(async move {
            let sql = "SELECT id, text FROM loadtest_floor WHERE id > $1 ORDER BY id DESC LIMIT $2";
            while Instant::now() < until {
                let began = Instant::now();
                let page = sqlx::query(sql).bind(0_i64).bind(i64::from(rows)).fetch_all(&mut connection).await;
                page.map_err(|error| error.to_string())?;
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

/// Rows a second that one connection commits one by one.
///
/// # Errors
/// If the database does not answer.
pub async fn single_rows(url: &str) -> Result<f64, String> {
    let mut connection = connect(url).await?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < SINGLE {
        let insert = sqlx::query("INSERT INTO loadtest_floor (text) VALUES ($1)").bind("A message of ordinary length.");
        insert.execute(&mut connection).await.map_err(|error| error.to_string())?;
        count += 1;
    }
    Ok(ratio(real(count), began.elapsed().as_secs_f64()))
}
