//! Connections to Postgres, each lent to one unit of work at a time.
//!
//! Not sqlx's own pool: that one takes a connection back by a round trip without a deadline, so a
//! half-open connection never comes back and its place is lost; and it tests a connection before it
//! lends it, by another round trip. Here a connection is kept only if it is known to be good:
//! [`Lease`] is consumed by whoever saw the last answer arrive. Whatever else becomes of a lease
//! (an error of the line, a deadline, a cancelled future) closes the socket.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};
use sqlx::{Connection, Executor, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::task::TaskTracker;

use crate::metrics;
use crate::model::limits::STORE_WAITING_MAX;

/// How long a unit of work waits for a connection, a new one included, before it is `unavailable`.
const ACQUIRE_MAX: Duration = Duration::from_secs(2);
/// How long Postgres works on one statement, waiting for locks included, before it gives it up:
/// what nobody waits for any more must not keep on running, nor hold its locks. A line that says
/// nothing for longer is dead.
pub(in crate::store) const STATEMENT_MAX: Duration = Duration::from_millis(2500);
/// How long a connection may take to roll back before it is closed instead.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);
/// How long closing waits for what is lent, and for each farewell.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// A connection that nobody needed for so long is closed, so that a peak does not hold the
/// database's memory.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Age at which a connection is replaced: Postgres's caches of a session only grow, and load
/// balancers change.
pub(in crate::store) const AGE_MAX: Duration = Duration::from_mins(30);

/// A bounded number of connections. Clones share them.
#[derive(Clone)]
pub(in crate::store) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    /// What its connections are for, in metrics.
    name: &'static str,
    options: PgConnectOptions,
    places: Arc<Semaphore>,
    places_max: u32,
    /// Units of work that wait for a place now.
    waiting: AtomicUsize,
    age_max: Duration,
    idle: Mutex<VecDeque<Session>>,
    trust: Trust,
    /// Grows when the log turns out to be another one: what an older connection answers belongs to
    /// the history before.
    fences: AtomicU64,
    rollbacks: TaskTracker,
}

/// Since when connections to one database are trusted; shared by all pools of it. It grows when a
/// connection proves bad: those opened before are as doubtful as that one, also those of a pool
/// that nobody needs just now.
#[derive(Clone, Default)]
pub(in crate::store) struct Trust(Arc<AtomicU64>);

impl Trust {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection at rest.
struct Session {
    connection: PgConnection,
    opened_at: Instant,
    idle_since: Instant,
    trust: u64,
    fence: u64,
}

/// A connection that is lent. Dropped as it is, the connection is closed.
pub(in crate::store) struct Lease {
    session: Session,
    alarm: Alarm,
    // Last: the place is free again once the connection is back or closed.
    _place: OwnedSemaphorePermit,
}

/// Raised if a lease is dropped in the middle of a statement that Postgres should have answered, if
/// only by its own timeout: then the line is dead, and the others most likely with it.
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

/// One that waits for a place; counted until it has one or gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared) -> sqlx::Result<Self> {
        let waiting = Self(&shared.waiting);
        if waiting.0.fetch_add(1, Ordering::Relaxed) < STORE_WAITING_MAX {
            return Ok(waiting);
        }
        metrics::store_refused(shared.name);
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "too many units of work wait for a connection",
        )
        .into())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool of up to `places_max` connections, none of which is open yet, each replaced at the
    /// age of `age_max`. `name` tells it from others in metrics. `trust` is shared by all pools of
    /// the database.
    pub fn new(
        name: &'static str,
        options: PgConnectOptions,
        places_max: u32,
        age_max: Duration,
        trust: Trust,
    ) -> Self {
        let shared = Shared {
            name,
            options,
            places: Arc::new(Semaphore::new(places_max as usize)),
            places_max,
            waiting: AtomicUsize::default(),
            age_max,
            idle: Mutex::default(),
            trust,
            fences: AtomicU64::default(),
            rollbacks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// How its connections are opened.
    pub fn options(&self) -> &PgConnectOptions {
        &self.shared.options
    }

    /// Lends a connection: one at rest, or a new one if there is room. Waits in a queue of at most
    /// [`STORE_WAITING_MAX`]; beyond it the newest is refused at once.
    pub async fn lend(&self) -> sqlx::Result<Lease> {
        let lending = async {
            let place = self.place().await?;
            let session = match self.take() {
                Some(session) => session,
                None => self.open().await?,
            };
            Ok(Lease { session, alarm: Alarm { pool: self.clone(), asked: None }, _place: place })
        };
        tokio::time::timeout(ACQUIRE_MAX, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn place(&self) -> sqlx::Result<OwnedSemaphorePermit> {
        let places = self.shared.places.clone();
        match places.clone().try_acquire_owned() {
            Ok(place) => return Ok(place),
            Err(TryAcquireError::Closed) => return Err(sqlx::Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => {}
        }
        let _waiting = Waiting::enter(&self.shared)?;
        places.acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)
    }

    async fn open(&self) -> sqlx::Result<Session> {
        let trust = self.shared.trust.now();
        let fence = self.shared.fences.load(Ordering::Acquire);
        match connect_to_primary(&self.shared.options).await {
            Ok(connection) => {
                let now = Instant::now();
                Ok(Session { connection, opened_at: now, idle_since: now, trust, fence })
            }
            Err(error) => {
                // Nobody listens there any more, or a standby does, so nobody is at the other end
                // of the old ones.
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

    /// The one that rested last, so that the others of a peak grow old. Those that a pool beside
    /// this one made doubtful are closed.
    fn take(&self) -> Option<Session> {
        let mut idle = self.shared.idle.lock();
        let trust = self.shared.trust.now();
        // Another pool of this database may have lost its trust meanwhile.
        while idle.back().is_some_and(|session| session.trust != trust) {
            let _closed = idle.pop_back();
        }
        idle.pop_back().filter(|session| session.opened_at.elapsed() < self.shared.age_max)
    }

    fn put(&self, mut session: Session) {
        let shared = &self.shared;
        session.idle_since = Instant::now();
        let mut idle = shared.idle.lock();
        // Asked under the lock, so that neither closing nor distrust misses one that comes back
        // just now.
        if shared.places.is_closed() || session.trust != shared.trust.now() {
            return;
        }
        idle.push_back(session);
        if idle.front().is_some_and(|oldest| oldest.idle_since.elapsed() > IDLE_MAX) {
            let _closed = idle.pop_front();
        }
    }

    /// Closes all that rest, here at once and in other pools when they are asked for, and those
    /// that are lent when they come back. After a restart of the database one call per connection
    /// under way fails, not one per connection of the pool.
    fn distrust(&self, reason: &'static str) {
        let doubtful = {
            let mut idle = self.shared.idle.lock();
            self.shared.trust.end();
            std::mem::take(&mut *idle)
        };
        metrics::store_connections_closed(reason, doubtful.len() + 1);
    }

    /// Closes all connections, and has what is under way on them fail: they answer for a history
    /// that is no more.
    pub fn fence(&self) {
        self.shared.fences.fetch_add(1, Ordering::AcqRel);
        self.distrust("epoch");
    }

    /// Closes all connections: the server only reads, since it is a standby or has become one.
    pub fn leave_standby(&self) {
        self.distrust("standby");
    }

    /// Lends a connection with a transaction begun on it by `begin`.
    pub async fn begin(&self, begin: &'static str) -> sqlx::Result<Lease> {
        let mut lease = self.lend().await?;
        let result = lease.statement().execute(begin).await;
        lease.settle(result).map(|_| lease)
    }

    /// Says farewell to the database, once what is lent is back.
    pub async fn close(&self) {
        let shared = &self.shared;
        let _ =
            tokio::time::timeout(CLOSE_MAX, shared.places.acquire_many(shared.places_max)).await;
        shared.places.close();
        let resting = std::mem::take(&mut *shared.idle.lock());
        let farewells = resting.into_iter().map(|session| session.connection.close());
        let _ = tokio::time::timeout(CLOSE_MAX, futures_util::future::join_all(farewells)).await;
    }
}

impl Lease {
    /// The connection, for one statement. Until [`Lease::settle`] or [`Lease::end`] tells how that
    /// ended, it counts as given up.
    pub fn statement(&mut self) -> &mut PgConnection {
        self.alarm.asked = Some(Instant::now());
        &mut self.session.connection
    }

    /// Whether the last statement was answered in full.
    pub fn is_settled(&self) -> bool {
        self.alarm.asked.is_none()
    }

    /// Notes how a statement of several ended. Fails if the log became another one since the
    /// connection was opened.
    pub fn settle<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        if self.session.fence != self.alarm.pool.shared.fences.load(Ordering::Acquire) {
            return Err(sqlx::Error::Io(io::Error::other(
                "this connection is of an earlier epoch of the log",
            )));
        }
        match &result {
            Err(error) if !is_answer(error) => self.alarm.pool.distrust("broken"),
            _ => self.alarm.asked = None,
        }
        result
    }

    /// Notes how the last statement ended, and gives the connection back if it is good.
    pub fn end<T>(mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        let result = self.settle(result);
        if self.is_settled() {
            let Self { session, alarm, _place } = self;
            alarm.pool.put(session);
        }
        result
    }

    /// Rolls back in the background what was begun and not committed, and gives the connection
    /// back.
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

/// Opens a connection to a server that takes writes.
///
/// # Errors
/// `Io` for a standby, which answers reads from a log that lags behind and refuses every write: the
/// address will name the primary later, as after a failover, and a connection that were kept would
/// not follow it.
pub(in crate::store) async fn connect_to_primary(
    options: &PgConnectOptions,
) -> sqlx::Result<PgConnection> {
    let mut connection = PgConnection::connect_with(options).await?;
    let row = connection.fetch_one("SELECT pg_is_in_recovery()").await?;
    if row.try_get(0)? { Err(standby()) } else { Ok(connection) }
}

/// The error of a server that only reads.
pub(in crate::store) fn standby() -> sqlx::Error {
    sqlx::Error::Io(io::Error::other("the server is a standby, which takes no writes"))
}

/// Whether an error is Postgres's own answer to a statement, after which the session goes on.
fn is_answer(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::RowNotFound => true,
        sqlx::Error::Database(_) => {
            !is_end_of_session(error) && !is_stale_plan(error) && !is_read_only(error)
        }
        _ => false,
    }
}

/// Whether Postgres ended the session with this error.
pub(in crate::store) fn is_end_of_session(error: &sqlx::Error) -> bool {
    postgres(error)
        .is_some_and(|cause| matches!(cause.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether a prepared statement has outlived a change of the schema. It is told before anything is
/// done, and every connection that is as old has the same statement.
pub(in crate::store) fn is_stale_plan(error: &sqlx::Error) -> bool {
    // By the function that told it: the code means any missing feature, and the words are
    // translated.
    postgres(error).is_some_and(|cause| {
        cause.code() == "0A000" && cause.routine() == Some("RevalidateCachedQuery")
    })
}

/// Whether the server refused a write because it is a standby: no write will succeed on this
/// connection.
fn is_read_only(error: &sqlx::Error) -> bool {
    postgres(error).is_some_and(|cause| cause.code() == "25006")
}

fn postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    if let sqlx::Error::Database(cause) = error { cause.try_downcast_ref() } else { None }
}
