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

    /// A standby that streams from this server, through `way` if that is given. It starts as a copy
    /// of what is here now.
    pub async fn standby(&self, way: Option<std::net::SocketAddr>) -> Self {
        Self(self.0.standby(way, &["fsync=off", "max_connections=100"]).await.unwrap())
    }

    /// Makes a standby a primary, on a timeline of its own.
    pub async fn promote(&self) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        connection.execute("SELECT pg_promote(true, 30)").await.unwrap();
    }

    /// The address of another database on it, for another user.
    pub fn url_of(&self, user: &str, database: &str) -> String {
        self.url()
            .replace("postgres@", &format!("{user}@"))
            .replace("/postgres", &format!("/{database}"))
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
