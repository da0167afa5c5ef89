//! Connections to Postgres, each lent to one unit of work at a time.
//!
//! Not sqlx's own pool: that one takes a connection back by a round trip without a deadline, so a half-open connection
//! never comes back and its place is lost; and it tests a connection before it lends it, by another round trip. Here a
//! connection is kept only if it is known to be good: [`Lease`] is consumed by whoever saw the last answer arrive.
//! Whatever else becomes of a lease (an error of the line, a deadline, a cancelled future) closes the socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};
use sqlx::{Connection, Executor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::metrics;

/// How long a unit of work waits for a connection, a new one included, before it is `unavailable`.
const ACQUIRE_MAX: Duration = Duration::from_secs(2);
/// How long Postgres works on one statement, waiting for locks included, before it gives it up: what nobody waits for
/// any more must not keep on running, nor hold its locks. A line that says nothing for longer is dead.
pub(super) const STATEMENT_MAX: Duration = Duration::from_millis(2500);
/// How long a connection may take to roll back before it is closed instead.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);
/// How long closing waits for what is lent, and for each farewell.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// A connection that nobody needed for so long is closed, so that a peak does not hold the database's memory.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Age at which a connection is replaced: Postgres's caches of a session only grow, and load balancers change.
const AGE_MAX: Duration = Duration::from_mins(30);

/// A bounded number of connections. Clones share them.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    options: PgConnectOptions,
    places: Arc<Semaphore>,
    places_max: u32,
    idle: Mutex<VecDeque<Session>>,
    /// Grows when a connection proves bad: those opened before are as doubtful as that one, here and in the pools beside.
    trusted_since: Arc<AtomicU64>,
    rollbacks: TaskTracker,
}

/// A connection at rest.
struct Session {
    connection: PgConnection,
    opened_at: Instant,
    idle_since: Instant,
    trust: u64,
}

/// A connection that is lent. Dropped as it is, the connection is closed.
pub(super) struct Lease {
    session: Session,
    alarm: Alarm,
    // Last: the place is free again once the connection is back or closed.
    _place: OwnedSemaphorePermit,
}

/// Raised if a lease is dropped in the middle of a statement that Postgres should have answered, if only by its own
/// timeout: then the line is dead, and the others most likely with it.
struct Alarm {
    pool: Pool,
    asked: Option<Instant>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() > STATEMENT_MAX) {
            self.pool.distrust("silent");
        }
    }
}

impl Pool {
    pub fn new(options: PgConnectOptions, places_max: u32) -> Self {
        Self::trusting(options, places_max, Arc::default())
    }

    /// Another pool of connections to the same server: what proves bad in one makes the other's doubtful as well, so that
    /// each need not find out for itself.
    pub fn beside(&self, options: PgConnectOptions, places_max: u32) -> Self {
        Self::trusting(options, places_max, self.shared.trusted_since.clone())
    }

    fn trusting(options: PgConnectOptions, places_max: u32, trusted_since: Arc<AtomicU64>) -> Self {
        let places = Arc::new(Semaphore::new(places_max as usize));
        let (idle, rollbacks) = (Mutex::default(), TaskTracker::new());
        Self { shared: Arc::new(Shared { options, places, places_max, idle, trusted_since, rollbacks }) }
    }

    /// How its connections are opened.
    pub fn options(&self) -> &PgConnectOptions {
        &self.shared.options
    }

    /// Lends a connection: one at rest, or a new one if there is room.
    pub async fn lend(&self) -> sqlx::Result<Lease> {
        let lending = async {
            let place = self.shared.places.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let session = match self.take() {
                Some(session) => session,
                None => self.open().await?,
            };
            Ok(Lease { session, alarm: Alarm { pool: self.clone(), asked: None }, _place: place })
        };
        tokio::time::timeout(ACQUIRE_MAX, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn open(&self) -> sqlx::Result<Session> {
        let trust = self.shared.trusted_since.load(Ordering::Acquire);
        match PgConnection::connect_with(&self.shared.options).await {
            Ok(connection) => Ok(Session { connection, opened_at: Instant::now(), idle_since: Instant::now(), trust }),
            Err(error) => {
                // Nobody listens there any more, so nobody is at the other end of the old ones.
                if matches!(error, sqlx::Error::Io(_)) {
                    self.distrust("refused");
                }
                Err(error)
            }
        }
    }

    /// Opens so many connections, as far as they can be had, and lets them rest.
    pub async fn warm_up(&self, count: usize) {
        let leases = futures_util::future::join_all((0..count).map(|_| self.lend())).await;
        for lease in leases.into_iter().flatten() {
            // Nothing was asked on it, so it is as good as new.
            let _ = lease.end(Ok(()));
        }
    }

    /// The one that rested last, so that the others of a peak grow old. Those that a pool beside this one made doubtful
    /// are closed.
    fn take(&self) -> Option<Session> {
        let mut idle = self.shared.idle.lock();
        let trusted_since = self.shared.trusted_since.load(Ordering::Acquire);
        idle.retain(|session| session.trust == trusted_since);
        idle.pop_back().filter(|session| session.opened_at.elapsed() < AGE_MAX)
    }

    fn put(&self, mut session: Session) {
        let shared = &self.shared;
        session.idle_since = Instant::now();
        let mut idle = shared.idle.lock();
        // Asked under the lock, so that neither closing nor distrust misses one that comes back just now.
        if shared.places.is_closed() || session.trust != shared.trusted_since.load(Ordering::Acquire) {
            return;
        }
        idle.push_back(session);
        if idle.front().is_some_and(|oldest| oldest.idle_since.elapsed() > IDLE_MAX) {
            let _closed = idle.pop_front();
        }
    }

    /// Closes all that rest, and those that are lent when they come back. After a restart of the database one call per
    /// connection under way fails, not one per connection of the pool.
    fn distrust(&self, reason: &'static str) {
        let doubtful = {
            let mut idle = self.shared.idle.lock();
            self.shared.trusted_since.fetch_add(1, Ordering::AcqRel);
            std::mem::take(&mut *idle)
        };
        metrics::store_connections_closed(reason, doubtful.len() + 1);
    }

    /// Lends a connection with a transaction begun on it by `begin`.
    pub async fn begin(&self, begin: &'static str) -> sqlx::Result<Lease> {
        let mut lease = self.lend().await?;
        let result = lease.statement().execute(begin).await;
        lease.settle(&result);
        result.map(|_| lease)
    }

    /// Says farewell to the database, once what is lent is back.
    pub async fn close(&self) {
        let shared = &self.shared;
        let _ = tokio::time::timeout(CLOSE_MAX, shared.places.acquire_many(shared.places_max)).await;
        shared.places.close();
        let resting = std::mem::take(&mut *shared.idle.lock());
        let farewells = resting.into_iter().map(|session| session.connection.close());
        let _ = tokio::time::timeout(CLOSE_MAX, futures_util::future::join_all(farewells)).await;
    }
}

impl Lease {
    /// The connection, for one statement. Until [`Lease::settle`] or [`Lease::end`] tells how that ended, it counts as
    /// given up.
    pub fn statement(&mut self) -> &mut PgConnection {
        self.alarm.asked = Some(Instant::now());
        &mut self.session.connection
    }

    /// Whether the last statement was answered in full.
    pub fn is_settled(&self) -> bool {
        self.alarm.asked.is_none()
    }

    /// Notes how a statement of several ended.
    pub fn settle<T>(&mut self, result: &sqlx::Result<T>) {
        match result {
            Err(error) if !is_answer(error) => self.alarm.pool.distrust("broken"),
            _ => self.alarm.asked = None,
        }
    }

    /// Notes how the last statement ended, and gives the connection back if it is good.
    pub fn end<T>(mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        self.settle(&result);
        if self.is_settled() {
            let Self { session, alarm, _place } = self;
            alarm.pool.put(session);
        }
        result
    }

    /// Rolls back in the background what was begun and not committed, and gives the connection back.
    pub fn roll_back_later(mut self) {
        // Without a runtime the process ends, and the socket with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let rollbacks = self.alarm.pool.shared.rollbacks.clone();
        let rolling_back = async move {
            let rollback = self.statement().execute("ROLLBACK");
            if let Ok(result) = tokio::time::timeout(ROLLBACK_MAX, rollback).await {
                // One that failed is closed, which rolls back as well.
                let _ = self.end(result);
            }
        };
        rollbacks.spawn_on(rolling_back, &runtime);
    }

    /// Commits its transaction, and gives the connection back.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        let result = self.statement().execute("COMMIT").await;
        self.end(result).map(drop)
    }
}

/// Whether an error is Postgres's own answer to a statement, after which the session goes on.
fn is_answer(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::RowNotFound => true,
        sqlx::Error::Database(_) => !is_end_of_session(error) && !is_stale_plan(error),
        _ => false,
    }
}

/// Whether Postgres ended the session with this error.
pub(super) fn is_end_of_session(error: &sqlx::Error) -> bool {
    postgres(error).is_some_and(|cause| matches!(cause.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether a prepared statement has outlived a change of the schema. It is told before anything is done, and every
/// connection that is as old has the same statement.
pub(super) fn is_stale_plan(error: &sqlx::Error) -> bool {
    // By the function that told it: the code means any missing feature, and the words are translated.
    postgres(error).is_some_and(|cause| cause.code() == "0A000" && cause.routine() == Some("RevalidateCachedQuery"))
}

fn postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    if let sqlx::Error::Database(cause) = error { cause.try_downcast_ref() } else { None }
}
