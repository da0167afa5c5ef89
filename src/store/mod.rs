//! The durable truth. All SQL of the server lives in this module, one text for Postgres and SQLite.
//!
//! One public method is one unit of work: a transaction never leaves this module. Look-ups return `Option`; refusals
//! that only the data can decide (not a member, login taken) are [`Error`]s with their code. A database that is away is
//! `unavailable`, which callers may retry.

mod append;
mod append_postgres;
mod append_sqlite;
mod changed;
mod changes;
mod chat_limits;
mod chats;
mod cluster;
mod connect;
mod directory;
mod epoch;
mod head;
mod invites;
mod jobs;
mod members;
mod messages;
mod migrate;
#[cfg(feature = "faults")]
mod numbered_first;
mod pool;
mod presence;
mod removals;
mod replica_lock;
mod sessions;
mod users;

pub use append::{Appended, Attempted};
pub use changed::{CHANGE_SLOTS_MARGIN, ChangedChat};
pub use changes::{ChangeItem, Changes, Since};
pub use chats::{Access, ChatToSync, Creation, NewChat, Opened};
pub use connect::StoreOptions;
pub use invites::{Invite, OpenInvite};
pub use jobs::Swept;
pub use members::AddMember;
pub use messages::HistoryRange;
pub use presence::Acquaintance;
pub use replica_lock::ReplicaLock;
pub use sessions::{EndedSession, LoggedIn, NewSession, Refreshed, Replaced, SessionTokens};
pub use users::{AccountChange, NewUser};

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Sqlite, SqlitePool, Transaction};

use crate::metrics;
use crate::model::{Error, Result, UserId};

use pool::{Lease, Pool};

/// Longest that one unit of work may take; then it is given up as `unavailable`, and its connection to Postgres closed.
/// More than [`pool::STATEMENT_MAX`], so that a slow statement is told by Postgres and its connection kept; less than a
/// request may take, so that what went wrong is told by whoever knows it.
const UNIT_MAX: Duration = Duration::from_secs(4);
/// Longest that the database may take to show that it is there.
const PING_MAX: Duration = Duration::from_secs(2);

/// One of the two databases.
#[derive(Clone)]
enum Db {
    Postgres(Pool),
    Sqlite(SqlitePool),
}

/// A transaction in one of them.
enum Tx {
    Postgres(Lease),
    Sqlite(Transaction<'static, Sqlite>),
    Ended,
}

/// The connections for sessions: one pool on Postgres; on SQLite a reading one of their own and the one that writes.
#[derive(Clone)]
struct SessionDb {
    reader: Db,
    writer: Db,
}

/// The store. Clones share the connections.
#[derive(Clone)]
pub struct Store {
    reader: Db,
    /// The same pool as `reader` on Postgres; the one writing connection on SQLite.
    writer: Db,
    /// What sessions are read from and written to, so that no queue of requests keeps users from being recognised.
    sessions: SessionDb,
    /// What [`Store::ping`] asks: connections of its own on Postgres, so that a pool that is busy is not a database that is
    /// away.
    probe: Db,
    /// What sends go through: connections of their own on Postgres, whose sessions wait for a lock only briefly. The same as
    /// `writer` on SQLite.
    appenders: Db,
    statements: Arc<AtomicU64>,
    log: Arc<epoch::Log>,
}

/// Runs one statement on a connection of the pool, which gets it back if it is known to be good.
macro_rules! lent {
    ($pool:expr, |$c:ident| $query:expr) => {{
        let mut lease = $pool.lend().await.map_err($crate::store::failure)?;
        let $c = lease.statement();
        let result = $query.await;
        lease.end(result).map_err($crate::store::failure)
    }};
}
use lent;

/// Runs one statement of several on a connection that stays lent.
macro_rules! on_lease {
    ($lease:expr, |$c:ident| $query:expr) => {{
        let $c = $lease.statement();
        let result = $query.await;
        $lease.settle(result).map_err($crate::store::failure)
    }};
}
use on_lease;

/// Runs one statement on whichever database it is: `on!(self.reader(), |db| sqlx::query(SQL).execute(db))`.
macro_rules! on {
    ($db:expr, |$c:ident| $query:expr) => {
        match $db {
            $crate::store::Db::Postgres(pool) => $crate::store::lent!(pool, |$c| $query),
            $crate::store::Db::Sqlite($c) => $query.await.map_err($crate::store::failure),
        }
    };
}
use on;

/// The same inside a transaction: `within!(tx, |db| sqlx::query(SQL).execute(db))`.
macro_rules! within {
    ($tx:expr, |$c:ident| $query:expr) => {
        match &mut $tx.inner {
            $crate::store::Tx::Postgres(lease) => {
                $tx.statements.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                $crate::store::on_lease!(lease, |$c| $query)
            }
            $crate::store::Tx::Sqlite(inner) => {
                $tx.statements.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let $c = &mut **inner;
                $query.await.map_err($crate::store::failure)
            }
            $crate::store::Tx::Ended => Err($crate::store::ended()),
        }
    };
}
use within;

/// A unit of work that goes on after its commit.
fn ended() -> Error {
    Error::internal("this unit of work has ended")
}

/// A unit of work under way. Dropped without [`Work::commit`], it never happened.
struct Work {
    inner: Tx,
    statements: Arc<AtomicU64>,
}

impl Work {
    async fn commit(mut self) -> Result<()> {
        match std::mem::replace(&mut self.inner, Tx::Ended) {
            Tx::Postgres(lease) => lease.commit().await.map_err(failure),
            Tx::Sqlite(tx) => tx.commit().await.map_err(failure),
            Tx::Ended => Err(ended()),
        }
    }
}

impl Work {
    /// Counts a statement that differs between the databases, and so goes without `within!`.
    fn count_statement(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A refusal in the middle leaves a good connection. One whose last answer never came is closed, and with it what
        // it had begun.
        if let Tx::Postgres(lease) = std::mem::replace(&mut self.inner, Tx::Ended)
            && lease.is_settled()
        {
            lease.roll_back_later();
        }
    }
}

impl Store {
    fn reader(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.reader
    }

    fn writer(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.writer
    }

    /// As [`Store::reader`], on the connections for sessions.
    fn session_reader(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.sessions.reader
    }

    /// As [`Store::writer`], on the connections for sessions.
    fn session_writer(&self) -> &Db {
        self.statements.fetch_add(1, Ordering::Relaxed);
        &self.sessions.writer
    }

    /// Statements sent so far, without `BEGIN` and `COMMIT`. A test holds the hot paths to a fixed number.
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Whether this is the embedded database.
    pub fn is_embedded(&self) -> bool {
        matches!(self.writer, Db::Sqlite(_))
    }

    /// Begins a unit of work that writes.
    async fn begin(&self) -> Result<Work> {
        self.begin_on(&self.writer).await
    }

    /// Begins a unit of work that writes sessions.
    async fn begin_session(&self) -> Result<Work> {
        self.begin_on(&self.sessions.writer).await
    }

    async fn begin_on(&self, db: &Db) -> Result<Work> {
        let inner = match db {
            Db::Postgres(pool) => Tx::Postgres(pool.begin("BEGIN").await.map_err(failure)?),
            // IMMEDIATE: a deferred transaction that turns into a writer fails at once, whatever the busy timeout.
            Db::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await.map_err(failure)?),
        };
        Ok(Work { inner, statements: self.statements.clone() })
    }

    /// Begins a unit of work that reads one snapshot with several statements.
    async fn snapshot(&self) -> Result<Work> {
        let inner = match &self.reader {
            Db::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Tx::Postgres(pool.begin(begin).await.map_err(failure)?)
            }
            Db::Sqlite(pool) => Tx::Sqlite(pool.begin().await.map_err(failure)?),
        };
        Ok(Work { inner, statements: self.statements.clone() })
    }

    /// Whether the database answers, and takes writes: a standby is as good as none.
    pub async fn ping(&self) -> Result<()> {
        let asking = timed("ping", || async {
            let sql = if self.is_embedded() { "SELECT FALSE" } else { "SELECT pg_is_in_recovery()" };
            let in_recovery: bool = on!(&self.probe, |db| sqlx::query_scalar(sql).fetch_one(db))?;
            if in_recovery { Err(self.leave_standby()) } else { Ok(()) }
        });
        tokio::time::timeout(PING_MAX, asking).await.unwrap_or_else(|elapsed| Err(Error::unavailable(elapsed)))
    }

    /// Closes the connections; what is under way ends first.
    pub async fn close(&self) {
        self.mark_end().await;
        // The writer of SQLite last: only the last connection to a file that may write cleans up its write-ahead log.
        let readers = [&self.sessions.reader, &self.reader, &self.probe];
        for db in readers.into_iter().chain([&self.sessions.writer, &self.appenders, &self.writer]) {
            match db {
                Db::Postgres(pool) => pool.close().await,
                Db::Sqlite(pool) => pool.close().await,
            }
        }
    }
}

/// Lets `execute` of either database end in the same type.
trait MapOkDrop {
    fn map_ok_drop(self) -> impl Future<Output = sqlx::Result<()>>;
}

impl<T, F: Future<Output = sqlx::Result<T>>> MapOkDrop for F {
    async fn map_ok_drop(self) -> sqlx::Result<()> {
        self.await.map(drop)
    }
}

/// Measures a unit of work under its name, and gives it up after [`UNIT_MAX`]. One that met a statement prepared for an
/// older schema is done once more: nothing came of it, since that is told before the statement runs.
async fn timed<T, W>(unit: &'static str, work: impl Fn() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let working = async {
        match work().await {
            Err(error) if of_database(&error).is_some_and(pool::is_stale_plan) => work().await,
            result => result,
        }
    };
    let result = match tokio::time::timeout(UNIT_MAX, working).await {
        Ok(result) => result,
        Err(elapsed) => Err(Error::unavailable(elapsed)),
    };
    metrics::store_unit(unit, start.elapsed(), &result);
    result
}

/// What a database's failure means: away or overloaded is `unavailable`, anything else a fault of ours.
fn failure(error: sqlx::Error) -> Error {
    let away = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(cause) => {
            cause.code().is_some_and(|code| {
                // Postgres: connection, resources, operator, deadlock, serialization, lock timeout; and what refuses a new
                // connection: the login, the database's name or its state; a standby. SQLite: busy, locked.
                let postgres = ["08", "53", "57", "40", "55P03", "28", "3D000", "55000", "25006"]
                    .iter()
                    .any(|class| code.len() == 5 && code.starts_with(class));
                let primary = code.parse::<u32>().map(|code| code & 0xff);
                postgres || (code.len() < 5 && matches!(primary, Ok(5 | 6)))
            }) || pool::is_end_of_session(&error)
                || pool::is_stale_plan(&error)
        }
        _ => false,
    };
    if away { Error::unavailable(error) } else { Error::internal(error) }
}

/// A list of ids as SQLite takes it: an array in JSON, of what its `unhex` reads.
fn id_list(ids: &[UserId]) -> String {
    ids.iter().map(|id| id.0.simple().to_string()).collect::<serde_json::Value>().to_string()
}

/// Whether an insert met a row that is there already.
fn is_unique_violation(error: &Error) -> bool {
    matches!(of_database(error), Some(sqlx::Error::Database(cause)) if cause.is_unique_violation())
}

/// Whether a lock was not to be had in the time that the session waits for one.
fn is_lock_timeout(error: &Error) -> bool {
    of_database(error)
        .and_then(sqlx::Error::as_database_error)
        .is_some_and(|cause| cause.code().is_some_and(|code| code == "55P03"))
}

/// The database's own error behind this one.
fn of_database(error: &Error) -> Option<&sqlx::Error> {
    error.source.as_deref().and_then(|source| source.downcast_ref())
}
