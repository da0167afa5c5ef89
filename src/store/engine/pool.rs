//! Connections to Postgres, each lent to one unit of work at a time.
//!
//! sqlx's own pool does not serve here. It takes a connection back by a round trip without a
//! deadline, so a half-open connection never comes back and its permit is lost. It also tests a
//! connection before it lends it, by another round trip. This pool keeps a connection only if it is
//! known to be good: only a caller that received the last answer can give a [`Lease`] back. Any
//! other end of a lease (a broken connection, a deadline, a cancelled future) closes the socket.

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

/// How long a unit of work waits for a connection, including the time to open one, before it is
/// `unavailable`.
const ACQUIRE_MAX: Duration = Duration::from_secs(2);
/// How long Postgres works on one statement, including its wait for locks, before it gives the
/// statement up. A statement that no caller waits for must not keep running or hold locks. A
/// connection without an answer for longer is dead.
pub(in crate::store) const STATEMENT_MAX: Duration = Duration::from_millis(2500);
/// How long a connection may take to roll back before it is closed instead.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);
/// How long closing waits for the lent connections, and then for the end of the idle ones.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How long a connection stays idle before it is closed, so that a peak does not occupy the
/// database's memory for long.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Age at which a connection is replaced: the caches of a Postgres session only grow, and the
/// address may name another server by then.
pub(in crate::store) const AGE_MAX: Duration = Duration::from_mins(30);

/// A bounded pool of connections. Clones share the connections.
#[derive(Clone)]
pub(in crate::store) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    /// The name of the pool in metrics.
    name: &'static str,
    options: PgConnectOptions,
    permits: Arc<Semaphore>,
    connections_max: u32,
    /// The number of units of work that wait for a permit.
    waiting: AtomicUsize,
    age_max: Duration,
    idle: Mutex<VecDeque<Session>>,
    trust: Trust,
    /// Incremented when the log gets a new epoch: the answers of older connections belong to the
    /// history before.
    fences: AtomicU64,
    rollbacks: TaskTracker,
}

/// The generation of connections to one database that are trusted, shared by all its pools. It is
/// incremented when a connection proves bad: then every connection that was opened before may be
/// bad as well, also in pools that are not in use.
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

/// An idle connection, or the connection of a lease.
struct Session {
    connection: PgConnection,
    opened_at: Instant,
    idle_since: Instant,
    trust: u64,
    fence: u64,
}

/// A lent connection. A lease that is dropped without [`Lease::end`] closes its connection.
pub(in crate::store) struct Lease {
    session: Session,
    alarm: Alarm,
    // The last field, so that the permit is released after the connection is closed.
    _permit: OwnedSemaphorePermit,
}

/// Distrusts all connections if a lease is dropped in the middle of a statement for which even
/// Postgres's own timeout has passed: this connection is dead, and the others probably are as well.
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

/// A unit of work in the queue for a permit; counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared) -> sqlx::Result<Self> {
        let waiting = Self(&shared.waiting);
        if waiting.0.fetch_add(1, Ordering::Relaxed) < STORE_WAITING_MAX {
            return Ok(waiting);
        }

        metrics::store_refused(shared.name);
        let reason = "too many units of work wait for a connection";
        Err(io::Error::new(io::ErrorKind::WouldBlock, reason).into())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool of up to `connections_max` connections, none of which is open yet. Each is replaced
    /// at the age of `age_max`. `name` identifies the pool in metrics. All pools of one database
    /// share `trust`.
    pub fn new(
        name: &'static str,
        options: PgConnectOptions,
        connections_max: u32,
        age_max: Duration,
        trust: Trust,
    ) -> Self {
        let shared = Shared {
            name,
            options,
            permits: Arc::new(Semaphore::new(connections_max as usize)),
            connections_max,
            waiting: AtomicUsize::default(),
            age_max,
            idle: Mutex::default(),
            trust,
            fences: AtomicU64::default(),
            rollbacks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The options with which connections are opened.
    pub fn options(&self) -> &PgConnectOptions {
        &self.shared.options
    }

    /// Lends an idle connection, or a new one if there is none. Waits in a queue of at most
    /// [`STORE_WAITING_MAX`] for a permit; if the queue is full, the newest unit of work is refused
    /// at once.
    pub async fn lend(&self) -> sqlx::Result<Lease> {
        let lending = async {
            let permit = self.permit().await?;
            let session = match self.take() {
                Some(session) => session,
                None => self.open().await?,
            };
            Ok(Lease { session, alarm: Alarm { pool: self.clone(), asked: None }, _permit: permit })
        };
        tokio::time::timeout(ACQUIRE_MAX, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn permit(&self) -> sqlx::Result<OwnedSemaphorePermit> {
        let permits = self.shared.permits.clone();
        match permits.clone().try_acquire_owned() {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(sqlx::Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => {}
        }

        let _waiting = Waiting::enter(&self.shared)?;
        permits.acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)
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
                // No server listens at the address, or a standby does. So no server is at the other
                // end of the older connections either.
                if matches!(error, sqlx::Error::Io(_)) {
                    self.distrust("refused");
                }
                Err(error)
            }
        }
    }

    /// Opens up to `count` connections, and leaves them idle. Ignores failures.
    pub async fn warm_up(&self, count: usize) {
        let leases = futures_util::future::join_all((0..count).map(|_| self.lend())).await;
        for lease in leases.into_iter().flatten() {
            // The connection was not used yet, so it is good.
            let _ = lease.end(Ok(()));
        }
    }

    /// Takes the connection that was idle for the shortest time, so that the others can grow old
    /// and be closed. Closes the connections that are no longer trusted.
    fn take(&self) -> Option<Session> {
        let mut idle = self.shared.idle.lock();
        let trust = self.shared.trust.now();
        // Another pool of this database may have distrusted them.
        while idle.back().is_some_and(|session| session.trust != trust) {
            let _closed = idle.pop_back();
        }

        idle.pop_back().filter(|session| session.opened_at.elapsed() < self.shared.age_max)
    }

    fn put(&self, mut session: Session) {
        let shared = &self.shared;
        session.idle_since = Instant::now();
        let mut idle = shared.idle.lock();
        // Checked under the lock, so that a connection that comes back while the pool is closed or
        // distrusted is closed as well.
        if shared.permits.is_closed() || session.trust != shared.trust.now() {
            return;
        }

        idle.push_back(session);
        if idle.front().is_some_and(|oldest| oldest.idle_since.elapsed() > IDLE_MAX) {
            let _closed = idle.pop_front();
        }
    }

    /// Closes all idle connections of this pool at once, those of other pools when they are taken,
    /// and the lent ones when they come back. So after a restart of the database only the
    /// statements under way fail, not one for each connection of the pool.
    fn distrust(&self, reason: &'static str) {
        let doubtful = {
            let mut idle = self.shared.idle.lock();
            self.shared.trust.end();
            std::mem::take(&mut *idle)
        };
        metrics::store_connections_closed(reason, doubtful.len() + 1);
    }

    /// Closes all connections, and fails the statements under way: their answers belong to an
    /// earlier history.
    pub fn fence(&self) {
        self.shared.fences.fetch_add(1, Ordering::AcqRel);
        self.distrust("epoch");
    }

    /// Closes all connections, since the server is a standby and accepts no writes.
    pub fn leave_standby(&self) {
        self.distrust("standby");
    }

    /// Lends a connection on which the statement `begin` has begun a transaction.
    pub async fn begin(&self, begin: &'static str) -> sqlx::Result<Lease> {
        let mut lease = self.lend().await?;
        let result = lease.statement().execute(begin).await;
        lease.settle(result).map(|_| lease)
    }

    /// Closes the pool: waits for the lent connections, then ends all sessions.
    pub async fn close(&self) {
        let shared = &self.shared;
        let all_back = shared.permits.acquire_many(shared.connections_max);
        let _ = tokio::time::timeout(CLOSE_MAX, all_back).await;
        shared.permits.close();

        let idle = std::mem::take(&mut *shared.idle.lock());
        let closing = idle.into_iter().map(|session| session.connection.close());
        let _ = tokio::time::timeout(CLOSE_MAX, futures_util::future::join_all(closing)).await;
    }
}

impl Lease {
    /// The connection, for one statement. Until [`Lease::settle`] or [`Lease::end`] gets the result
    /// of this statement, dropping the lease closes the connection.
    pub fn statement(&mut self) -> &mut PgConnection {
        self.alarm.asked = Some(Instant::now());
        &mut self.session.connection
    }

    /// Whether the last statement was answered.
    pub fn is_settled(&self) -> bool {
        self.alarm.asked.is_none()
    }

    /// Takes the result of one statement of several. Fails if the log got a new epoch after the
    /// connection was opened.
    pub fn settle<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        if self.session.fence != self.alarm.pool.shared.fences.load(Ordering::Acquire) {
            return Err(sqlx::Error::Io(io::Error::other(
                "this connection belongs to an earlier epoch of the log",
            )));
        }

        match &result {
            Err(error) if !is_answer(error) => self.alarm.pool.distrust("broken"),
            _ => self.alarm.asked = None,
        }
        result
    }

    /// Takes the result of the last statement, and gives the connection back if it is good.
    pub fn end<T>(mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        let result = self.settle(result);
        if self.is_settled() {
            let Self { session, alarm, _permit } = self;
            alarm.pool.put(session);
        }
        result
    }

    /// Rolls the open transaction back in the background, and gives the connection back.
    pub fn roll_back_later(mut self) {
        // Without a runtime the process is ending, which closes the socket.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };

        let rollbacks = self.alarm.pool.shared.rollbacks.clone();
        let rolling_back = async move {
            let rollback = self.statement().execute("ROLLBACK");
            if let Ok(result) = tokio::time::timeout(ROLLBACK_MAX, rollback).await {
                // If the rollback fails, the connection is closed, which rolls back as well.
                let _ = self.end(result);
            }
        };
        rollbacks.spawn_on(rolling_back, &runtime);
    }

    /// Commits the transaction, and gives the connection back.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        let result = self.statement().execute("COMMIT").await;
        self.end(result).map(drop)
    }
}

/// Opens a connection to a server that accepts writes.
///
/// # Errors
/// `Io` for a standby. A standby answers reads from a log that lags behind, and refuses writes.
/// After a failover the address names the new primary, but an open connection would stay with the
/// standby.
pub(in crate::store) async fn connect_to_primary(
    options: &PgConnectOptions,
) -> sqlx::Result<PgConnection> {
    let mut connection = PgConnection::connect_with(options).await?;
    let row = connection.fetch_one("SELECT pg_is_in_recovery()").await?;

    if row.try_get(0)? { Err(standby()) } else { Ok(connection) }
}

/// The error of a server that accepts no writes.
pub(in crate::store) fn standby() -> sqlx::Error {
    sqlx::Error::Io(io::Error::other("the server is a standby, which accepts no writes"))
}

/// Whether an error is Postgres's answer to a statement, after which the session can continue.
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

/// Whether a prepared statement was made for an older schema. Postgres reports this before the
/// statement runs. Every connection of the same age has the same statement.
pub(in crate::store) fn is_stale_plan(error: &sqlx::Error) -> bool {
    // Recognised by the function that reported it: the code stands for any unsupported feature, and
    // the text is translated.
    postgres(error).is_some_and(|cause| {
        cause.code() == "0A000" && cause.routine() == Some("RevalidateCachedQuery")
    })
}

/// Whether the server refused a write because it is a standby. No later write on this connection
/// can succeed.
fn is_read_only(error: &sqlx::Error) -> bool {
    postgres(error).is_some_and(|cause| cause.code() == "25006")
}

fn postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    if let sqlx::Error::Database(cause) = error { cause.try_downcast_ref() } else { None }
}
