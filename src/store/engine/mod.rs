//! The parts that all tables share: connections, units of work, errors, the schema, locks, and the
//! epoch of the log.

mod connect;
mod epoch;
mod error;
mod ids;
mod migrate;
mod pool;
mod replica_lock;
mod work;

pub use connect::StoreOptions;
pub(in crate::store) use error::{failure, is_lock_timeout, is_unique_violation};
pub use ids::for_sqlite;
pub(in crate::store) use ids::{id_list, on_ids, within_ids};
pub(in crate::store) use pool::Pool;
pub use replica_lock::ReplicaLock;
pub(in crate::store) use work::{
    Db, MapOkDrop, Tx, Work, ended, lent, on, on_lease, timed, within,
};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::{Error, Result};

/// The maximum time that [`Store::ping`] waits for the database.
const PING_MAX: Duration = Duration::from_secs(2);

/// The connections for sessions: one pool on Postgres; on SQLite a reading connection of their own
/// and the one writer.
#[derive(Clone)]
pub(in crate::store) struct SessionDb {
    pub(in crate::store) reader: Db,
    pub(in crate::store) writer: Db,
}

/// The store. Clones share the connections.
#[derive(Clone)]
pub struct Store {
    pub(in crate::store) reader: Db,
    /// The same pool as `reader` on Postgres; the one writing connection on SQLite.
    pub(in crate::store) writer: Db,
    /// The connections for sessions, so that a queue of requests does not delay authentication.
    pub(in crate::store) sessions: SessionDb,
    /// The connections for [`Store::ping`] and the epoch. On Postgres they have a pool of their
    /// own, so that a busy pool does not look like a database that is away.
    pub(in crate::store) probe: Db,
    /// The connections for sends. On Postgres they have a pool of their own, whose sessions wait
    /// for a lock only briefly. The same as `writer` on SQLite.
    pub(in crate::store) appenders: Db,
    pub(in crate::store) statements: Arc<AtomicU64>,
    pub(in crate::store) log: Arc<epoch::Log>,
}

impl Store {
    pub(in crate::store) fn reader(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.reader
    }

    pub(in crate::store) fn writer(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.writer
    }

    /// As [`Store::reader`], on the connections for sessions.
    pub(in crate::store) fn session_reader(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.sessions.reader
    }

    /// As [`Store::writer`], on the connections for sessions.
    pub(in crate::store) fn session_writer(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.sessions.writer
    }

    /// The number of statements sent so far, without `BEGIN` and `COMMIT`. A test checks that a
    /// send takes a fixed number.
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Whether the database is the embedded one, SQLite.
    pub fn is_embedded(&self) -> bool {
        matches!(self.writer, Db::Sqlite(_))
    }

    /// Begins a unit of work that writes.
    pub(in crate::store) async fn begin(&self) -> Result<Work> {
        self.begin_on(&self.writer).await
    }

    /// Begins a unit of work that writes sessions.
    pub(in crate::store) async fn begin_session(&self) -> Result<Work> {
        self.begin_on(&self.sessions.writer).await
    }

    pub(in crate::store) async fn begin_on(&self, db: &Db) -> Result<Work> {
        let inner = match db {
            Db::Postgres(pool) => Tx::Postgres(pool.begin("BEGIN").await.map_err(failure)?),
            // IMMEDIATE: a deferred transaction that becomes a writer can fail at once, whatever
            // the busy timeout is.
            Db::Sqlite(pool) => {
                Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await.map_err(failure)?)
            }
        };
        Ok(Work { inner, statements: self.statements.clone() })
    }

    /// Begins a unit of work whose statements all read the same snapshot.
    pub(in crate::store) async fn snapshot(&self) -> Result<Work> {
        let inner = match &self.reader {
            Db::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Tx::Postgres(pool.begin(begin).await.map_err(failure)?)
            }
            Db::Sqlite(pool) => Tx::Sqlite(pool.begin().await.map_err(failure)?),
        };
        Ok(Work { inner, statements: self.statements.clone() })
    }

    /// Whether the database answers and accepts writes. A standby is `unavailable`.
    pub async fn ping(&self) -> Result<()> {
        let answer = timed("ping", || async {
            let sql =
                if self.is_embedded() { "SELECT FALSE" } else { "SELECT pg_is_in_recovery()" };
            let in_recovery: bool = on!(&self.probe, |db| sqlx::query_scalar(sql).fetch_one(db))?;
            if in_recovery { Err(self.leave_standby()) } else { Ok(()) }
        });

        tokio::time::timeout(PING_MAX, answer)
            .await
            .unwrap_or_else(|elapsed| Err(Error::unavailable(elapsed)))
    }

    /// Closes the connections, after the units of work that are under way.
    pub async fn close(&self) {
        self.mark_end().await;

        // The SQLite writer is closed last: only the last connection that may write removes the
        // write-ahead log.
        let readers = [&self.sessions.reader, &self.reader, &self.probe];
        for db in readers.into_iter().chain([&self.sessions.writer, &self.appenders, &self.writer])
        {
            match db {
                Db::Postgres(pool) => pool.close().await,
                Db::Sqlite(pool) => pool.close().await,
            }
        }
    }
}
