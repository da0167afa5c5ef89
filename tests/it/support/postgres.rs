//! A Postgres of one's own, for tests that break it.

use sqlx::{Connection, Executor, PgConnection};
use starling_loadtest::services::Postgres;

/// A Postgres server on a port of its own; it ends with this value.
pub struct OwnPostgres(Postgres);

impl OwnPostgres {
    /// Makes a cluster and starts it. It does not wait for the disk, for speed.
    pub async fn start() -> Self {
        Self(Postgres::start(&["fsync=off", "max_connections=100"]).await.unwrap())
    }

    /// The address of its one database.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Starts it again after it was stopped.
    pub async fn restart(&mut self) {
        self.0.restart().await.unwrap();
    }

    /// `pg_ctl stop -m immediate`: all its processes end at once, without a word to the disk.
    pub fn stop_immediately(&mut self) {
        self.0.stop_immediately();
    }

    /// Kills the first process; the others notice.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Runs statements on a connection of its own.
    pub async fn execute(&self, sql: &str) {
        if let Ok(mut connection) = PgConnection::connect(&self.url()).await {
            // A test that breaks the database may break this, too.
            let _ = connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await;
        }
    }
}
