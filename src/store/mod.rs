//! The durable truth. All SQL of the server lives in this module, one text for Postgres and SQLite.
//!
//! One public method is one unit of work: a transaction never leaves this module. Look-ups return `Option`; refusals
//! that only the data can decide (not a member, login taken) are [`Error`]s with their code. A database that is away is
//! `unavailable`, which callers may retry.

mod append;
mod changes;
mod chats;
mod cluster;
mod connect;
mod head;
mod invites;
mod jobs;
mod members;
mod messages;
mod migrate;
mod presence;
mod sessions;
mod users;

pub use append::Appended;
pub use changes::{ChangeItem, Changes};
pub use chats::{Access, ChatToSync, Creation, NewChat};
pub use connect::StoreOptions;
pub use invites::{Invite, OpenInvite};
pub use jobs::Swept;
pub use members::AddMember;
pub use messages::HistoryRange;
pub use presence::Acquaintance;
pub use sessions::{EndedSession, LoggedIn, NewSession, Refreshed, SessionTokens};
pub use users::{AccountChange, AccountRemoval, NewUser};

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{PgPool, Postgres, Sqlite, SqlitePool, Transaction};

use crate::metrics;
use crate::model::{Error, Result};

/// Longest that one unit of work may take; then it is given up as `unavailable`.
const UNIT_MAX: Duration = Duration::from_secs(10);

/// One of the two databases.
#[derive(Clone)]
enum Db {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// A transaction in one of them.
enum Tx {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

/// The store. Clones share the connections.
#[derive(Clone)]
pub struct Store {
    reader: Db,
    /// The same pool as `reader` on Postgres; the one writing connection on SQLite.
    writer: Db,
    statements: Arc<AtomicU64>,
}

/// Runs one statement on whichever database it is: `on!(self.reader(), |db| sqlx::query(SQL).execute(db))`.
macro_rules! on {
    ($db:expr, |$c:ident| $query:expr) => {
        match $db {
            $crate::store::Db::Postgres($c) => $query.await.map_err($crate::store::failure),
            $crate::store::Db::Sqlite($c) => $query.await.map_err($crate::store::failure),
        }
    };
}
use on;

/// The same inside a transaction: `within!(tx, |db| sqlx::query(SQL).execute(db))`.
macro_rules! within {
    ($tx:expr, |$c:ident| $query:expr) => {
        match &mut $tx.inner {
            $crate::store::Tx::Postgres(inner) => {
                $tx.statements.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let $c = &mut **inner;
                $query.await.map_err($crate::store::failure)
            }
            $crate::store::Tx::Sqlite(inner) => {
                $tx.statements.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let $c = &mut **inner;
                $query.await.map_err($crate::store::failure)
            }
        }
    };
}
use within;

/// A unit of work under way. Dropped without [`Work::commit`], it never happened.
struct Work {
    inner: Tx,
    statements: Arc<AtomicU64>,
}

impl Work {
    async fn commit(self) -> Result<()> {
        match self.inner {
            Tx::Postgres(tx) => tx.commit().await,
            Tx::Sqlite(tx) => tx.commit().await,
        }
        .map_err(failure)
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
        let inner = match &self.writer {
            Db::Postgres(pool) => Tx::Postgres(pool.begin().await.map_err(failure)?),
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
                Tx::Postgres(pool.begin_with(begin).await.map_err(failure)?)
            }
            Db::Sqlite(pool) => Tx::Sqlite(pool.begin().await.map_err(failure)?),
        };
        Ok(Work { inner, statements: self.statements.clone() })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        timed("ping", async { on!(self.reader(), |db| sqlx::query("SELECT 1").execute(db).map_ok_drop()) }).await
    }

    /// Closes the connections; what is under way ends first.
    pub async fn close(&self) {
        for db in [&self.reader, &self.writer] {
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

/// Measures a unit of work under its name, and gives it up after [`UNIT_MAX`].
async fn timed<T>(unit: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let start = Instant::now();
    let result = match tokio::time::timeout(UNIT_MAX, work).await {
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
        sqlx::Error::Database(cause) => cause.code().is_some_and(|code| {
            // Postgres: connection, resources, operator, deadlock, serialization, lock timeout; and what refuses a new
            // connection: the login, the database's name or its state. SQLite: busy, locked.
            let postgres = ["08", "53", "57", "40", "55P03", "28", "3D000", "55000"]
                .iter()
                .any(|class| code.len() == 5 && code.starts_with(class));
            let primary = code.parse::<u32>().map(|code| code & 0xff);
            postgres || (code.len() < 5 && matches!(primary, Ok(5 | 6)))
        }),
        _ => false,
    };
    if away { Error::unavailable(error) } else { Error::internal(error) }
}

/// Whether an insert met a row that is there already.
fn is_unique_violation(error: &Error) -> bool {
    let source = error.source.as_deref().and_then(|source| source.downcast_ref::<sqlx::Error>());
    matches!(source, Some(sqlx::Error::Database(cause)) if cause.is_unique_violation())
}
