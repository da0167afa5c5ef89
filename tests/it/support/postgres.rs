//! A Postgres server for one test, for tests that break it.

use sqlx::{Connection, Executor, PgConnection};
use starling_loadtest::services::Postgres;

/// A Postgres server on its own port; dropping it stops the server.
pub struct OwnPostgres(Postgres);

impl OwnPostgres {
    /// Creates a data directory and starts a server on it, without `fsync` for speed.
    pub async fn start() -> Self {
        Self(Postgres::start(&["fsync=off", "max_connections=100"]).await.unwrap())
    }

    /// The URL of its one database.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// A standby that streams from this server, through the address `way` if given. It starts as a
    /// copy of this server.
    pub async fn standby(&self, way: Option<std::net::SocketAddr>) -> Self {
        Self(self.0.standby(way, &["fsync=off", "max_connections=100"]).await.unwrap())
    }

    /// Promotes this standby to a primary, on a new timeline.
    pub async fn promote(&self) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        connection.execute("SELECT pg_promote(true, 30)").await.unwrap();
    }

    /// The URL of another database on this server, for another user.
    pub fn url_of(&self, user: &str, database: &str) -> String {
        self.url()
            .replace("postgres@", &format!("{user}@"))
            .replace("/postgres", &format!("/{database}"))
    }

    /// Starts the server again after a stop.
    pub async fn restart(&mut self) {
        self.0.restart().await.unwrap();
    }

    /// `pg_ctl stop -m immediate`: ends all processes at once, without a checkpoint.
    pub fn stop_immediately(&mut self) {
        self.0.stop_immediately();
    }

    /// Kills the postmaster; the other processes then end by themselves.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Runs statements on a new connection.
    pub async fn execute(&self, sql: &str) {
        if let Ok(mut connection) = PgConnection::connect(&self.url()).await {
            // The test may have broken the database on purpose.
            let _ = connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await;
        }
    }
}
