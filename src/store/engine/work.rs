//! A unit of work on either database.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Sqlite, SqlitePool, Transaction};

use super::error::{failure, of_database};
use super::pool::{self, Lease, Pool};
use crate::metrics;
use crate::model::{Error, Result};

/// A pool of connections to one of the two databases.
#[derive(Clone)]
pub(in crate::store) enum Db {
    Postgres(Pool),
    Sqlite(SqlitePool),
}

/// A transaction on one of the two databases.
pub(in crate::store) enum Tx {
    Postgres(Lease),
    Sqlite(Transaction<'static, Sqlite>),
    /// The transaction was committed or rolled back.
    Ended,
}

/// Runs one statement on a connection of the pool. The pool gets the connection back if it is good.
macro_rules! lent {
    ($pool:expr, |$c:ident| $query:expr) => {{
        let mut lease = $pool.lend().await.map_err($crate::store::failure)?;
        let $c = lease.statement();
        let result = $query.await;
        lease.end(result).map_err($crate::store::failure)
    }};
}
pub(in crate::store) use lent;

/// Runs one statement of several on a connection that stays lent.
macro_rules! on_lease {
    ($lease:expr, |$c:ident| $query:expr) => {{
        let $c = $lease.statement();
        let result = $query.await;
        $lease.settle(result).map_err($crate::store::failure)
    }};
}
pub(in crate::store) use on_lease;

/// Runs one statement on either database: `on!(self.reader(), |db|
/// sqlx::query(SQL).execute(db))`.
macro_rules! on {
    ($db:expr, |$c:ident| $query:expr) => {
        match $db {
            $crate::store::Db::Postgres(pool) => $crate::store::lent!(pool, |$c| $query),
            $crate::store::Db::Sqlite($c) => $query.await.map_err($crate::store::failure),
        }
    };
}
pub(in crate::store) use on;

/// Like `on!`, inside a unit of work: `within!(work, |db| sqlx::query(SQL).execute(db))`.
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
pub(in crate::store) use within;

/// The error of a statement after the unit of work has ended.
pub(in crate::store) fn ended() -> Error {
    Error::internal("this unit of work has ended")
}

/// A unit of work under way. If it is dropped without [`Work::commit`], it is rolled back.
pub(in crate::store) struct Work {
    pub(in crate::store) inner: Tx,
    pub(in crate::store) statements: Arc<AtomicU64>,
}

impl Work {
    pub(in crate::store) async fn commit(mut self) -> Result<()> {
        match std::mem::replace(&mut self.inner, Tx::Ended) {
            Tx::Postgres(lease) => lease.commit().await.map_err(failure),
            Tx::Sqlite(tx) => tx.commit().await.map_err(failure),
            Tx::Ended => Err(ended()),
        }
    }
}

impl Work {
    /// Counts a statement that runs without `within!`, since it differs between the databases.
    pub(in crate::store) fn count_statement(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A refusal in the middle of the unit leaves a good connection. A connection whose last
        // answer did not arrive is closed, which rolls back as well.
        if let Tx::Postgres(lease) = std::mem::replace(&mut self.inner, Tx::Ended)
            && lease.is_settled()
        {
            lease.roll_back_later();
        }
    }
}

/// Drops the result of `execute`, whose type differs between the databases.
pub(in crate::store) trait MapOkDrop {
    fn map_ok_drop(self) -> impl Future<Output = sqlx::Result<()>>;
}

impl<T, F: Future<Output = sqlx::Result<T>>> MapOkDrop for F {
    async fn map_ok_drop(self) -> sqlx::Result<()> {
        self.await.map(drop)
    }
}

/// The maximum time of one unit of work. After it, the unit is given up as `unavailable`, and its
/// connection to Postgres is closed. Longer than [`pool::STATEMENT_MAX`], so that Postgres reports
/// a slow statement and the connection stays open. Shorter than the deadline of a request, so that
/// the request gets this error.
const UNIT_MAX: Duration = Duration::from_secs(4);

/// Runs a unit of work, measures it under its name, and gives it up after [`UNIT_MAX`]. A unit that
/// met a statement that was prepared for an older schema runs once more: Postgres reports this
/// before the statement runs, so nothing was changed.
pub(in crate::store) async fn timed<T, W>(unit: &'static str, work: impl Fn() -> W) -> Result<T>
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
