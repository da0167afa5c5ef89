//! The migrations of the schema: applying them, and counting those that are not applied yet.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, SqlitePool};

use super::{Db, Pool, Store, failure, on, timed};
use crate::model::{Error, Result};

fn postgres() -> Migrator {
    sqlx::migrate!("migrations/postgres")
}

fn sqlite() -> Migrator {
    sqlx::migrate!("migrations/sqlite")
}

/// The key of the advisory lock that one migration at a time holds: "starling" in ASCII.
const LOCK: i64 = 0x7374_6172_6c69_6e67;
/// Pause between two tries for the lock.
const LOCK_RETRY: Duration = Duration::from_millis(200);
/// The maximum number of tries for the lock: five minutes.
const LOCK_TRIES: u32 = 1500;

impl Store {
    /// Brings the schema up to date. Several processes may call this at the same time: one applies
    /// the migrations, the others wait for it.
    ///
    /// # Errors
    /// `internal` if a migration fails or the applied migrations differ from those of this binary,
    /// `unavailable` if another process holds the lock for five minutes.
    pub async fn migrate(&self) -> Result<()> {
        match &self.writer {
            Db::Sqlite(pool) => self.migrate_sqlite(pool).await,
            Db::Postgres(pool) => migrate_postgres(pool).await,
        }
    }

    /// SQLite has no lock that two processes could take in turn, such as `serve` and `invite` on a
    /// new file. The slower process fails on a migration that the faster one has applied, and tries
    /// again as long as the number of pending migrations decreases.
    async fn migrate_sqlite(&self, pool: &SqlitePool) -> Result<()> {
        let mut pending = self.pending_migrations().await?;
        loop {
            let Err(error) = sqlite().run(pool).await else { return Ok(()) };

            let left = self.pending_migrations().await?;
            if left >= pending {
                return Err(Error::internal(error));
            }
            pending = left;
        }
    }

    /// The number of migrations of this binary that the database lacks.
    ///
    /// # Errors
    /// `unavailable` if the database is away.
    pub async fn pending_migrations(&self) -> Result<usize> {
        timed("pending_migrations", || async {
            let known = if self.is_embedded() { sqlite() } else { postgres() };
            let table_exists = if self.is_embedded() {
                "SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'"
            } else {
                "SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass('_sqlx_migrations')"
            };

            let tables: i64 =
                on!(self.reader(), |db| sqlx::query_scalar(table_exists).fetch_one(db))?;
            if tables == 0 {
                return Ok(known.iter().count());
            }

            let applied: Vec<i64> = on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT version FROM _sqlx_migrations WHERE success"
            )
            .fetch_all(db))?;
            Ok(known.iter().filter(|migration| !applied.contains(&migration.version)).count())
        })
        .await
    }
}

async fn migrate_postgres(pool: &Pool) -> Result<()> {
    // A connection of its own, without a statement timeout: building an index may take long.
    let options = pool.options().clone().options([("statement_timeout", "0")]);
    let mut connection = PgConnection::connect_with(&options).await.map_err(failure)?;

    // The lock is tried repeatedly. A session that waits for a lock inside Postgres holds a
    // snapshot, and CREATE INDEX CONCURRENTLY waits for all snapshots: a deadlock.
    let mut locked = false;
    for _ in 0..LOCK_TRIES {
        locked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(failure)?;
        if locked {
            break;
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
    if !locked {
        return Err(Error::overloaded());
    }

    let mut migrator = postgres();
    let result = migrator.set_locking(false).run(&mut connection).await.map_err(Error::internal);

    // The lock ends with its session.
    connection.close().await.map_err(failure)?;
    result
}
