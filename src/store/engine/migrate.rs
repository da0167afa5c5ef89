//! The schema's versions: bringing it up to date, and telling whether it is.

use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;

use super::{Db, Store, failure, on, timed};
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
/// Tries for the lock: five minutes.
const LOCK_TRIES: u32 = 1500;

impl Store {
    /// Brings the schema up to date. Several processes may do so at once; one of them works, the
    /// others wait for it.
    ///
    /// # Errors
    /// `internal` if a migration fails or one of another version was applied, `unavailable` if the
    /// lock is never free.
    pub async fn migrate(&self) -> Result<()> {
        match &self.writer {
            Db::Sqlite(pool) => {
                // SQLite has no lock to take turns by. Of two that meet on a new file, such as
                // `serve` and `invite`, the slower one fails on what it finds done, and looks
                // again.
                let mut pending = self.pending_migrations().await?;
                loop {
                    let result = sqlite().run(pool).await;
                    match result {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            let left = self.pending_migrations().await?;
                            if left >= pending {
                                return Err(Error::internal(error));
                            }
                            pending = left;
                        }
                    }
                }
            }
            Db::Postgres(pool) => {
                // Tried, not waited for: a session that waits for a lock holds a snapshot, and
                // CREATE INDEX CONCURRENTLY waits for all snapshots, so the two would wait for each
                // other. On a connection of its own: building an index may take as long as it
                // takes.
                let options = pool.options().clone().options([("statement_timeout", "0")]);
                let mut holder = PgConnection::connect_with(&options).await.map_err(failure)?;
                let mut free = false;
                for _ in 0..LOCK_TRIES {
                    free = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
                        .bind(LOCK)
                        .fetch_one(&mut holder)
                        .await
                        .map_err(failure)?;
                    if free {
                        break;
                    }
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                if !free {
                    return Err(Error::overloaded());
                }
                let mut migrator = postgres();
                let result =
                    migrator.set_locking(false).run(&mut holder).await.map_err(Error::internal);
                // The lock ends with its session.
                holder.close().await.map_err(failure)?;
                result
            }
        }
    }

    /// How many migrations this binary brings that the database lacks.
    ///
    /// # Errors
    /// `unavailable` if the database is away.
    pub async fn pending_migrations(&self) -> Result<usize> {
        timed("pending_migrations", || async {
            let known = if self.is_embedded() { sqlite() } else { postgres() };
            let look = if self.is_embedded() {
                "SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'"
            } else {
                "SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass('_sqlx_migrations')"
            };
            let table: i64 = on!(self.reader(), |db| sqlx::query_scalar(look).fetch_one(db))?;
            if table == 0 {
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
