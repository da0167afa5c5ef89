//! The replica lock: it allows one replica without Redis, or several replicas that share a Redis.
//! Two replicas without a common Redis would each miss the changes of the other.
//!
//! On Postgres it is an advisory lock, held by a connection of its own for as long as the process
//! serves: exclusively without Redis, shared with it. On SQLite it is a lock on a file beside the
//! database's. Both locks end with the process, so a replica that was killed leaves nothing behind.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, FromRow};
use tokio_util::sync::CancellationToken;

use super::pool::connect_to_primary;
use super::{Db, Store, failure};
use crate::model::{Error, Result};

/// The file whose lock is the replica lock of the SQLite file beside it. It is always empty, and it
/// may stay when no process serves.
const FILE: &str = "starling.lock";
/// The key of the lock in Postgres: "replicas" in ASCII.
const KEY: i64 = 0x7265_706c_6963_6173;
/// How long a replica waits for its predecessor to release the lock.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries for the lock.
const RETRY: Duration = Duration::from_millis(200);
/// Pause between two checks of the connection that holds the lock. With [`CALL_MAX`] and
/// [`HANDOVER_MAX`] it bounds how long two replicas can serve at once after the lock was lost.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long the connection may take to answer, or to be opened.
const CALL_MAX: Duration = Duration::from_secs(2);

/// The replica lock, held while [`ReplicaLock::keep`] runs.
pub struct ReplicaLock(Kind);

#[expect(clippy::large_enum_variant, reason = "there is one a process")]
enum Kind {
    Postgres(SessionLock),
    Sqlite(File),
}

/// A lock that can be lost with its session, and taken again.
struct SessionLock {
    options: PgConnectOptions,
    shared: bool,
    holder: Holder,
}

/// The session that holds the lock.
struct Holder {
    connection: PgConnection,
    identity: Identity,
}

/// The identity of a session: Postgres can reuse a process id, but not with the same start time.
#[derive(Clone, FromRow)]
struct Identity {
    pid: i32,
    started: String,
}

impl Store {
    /// Takes the replica lock: `shared` with Redis, exclusive without. Waits up to 5 s for a
    /// predecessor to release it. On SQLite the lock is always exclusive.
    ///
    /// # Errors
    /// `internal` with advice for the operator if another process holds the lock, `unavailable` if
    /// the database is away.
    pub async fn hold_replica_lock(&self, shared: bool) -> Result<ReplicaLock> {
        match &self.writer {
            Db::Postgres(pool) => {
                let options = pool.options().clone().application_name("starling-replica");
                let connection = connect(&options).await?;
                let holder = take(connection, shared).await?.ok_or_else(|| refusal(shared))?;
                Ok(ReplicaLock(Kind::Postgres(SessionLock { options, shared, holder })))
            }
            Db::Sqlite(pool) => {
                let file = pool.connect_options().get_filename().with_file_name(FILE);
                take_file(&file).await.map(|file| ReplicaLock(Kind::Sqlite(file)))
            }
        }
    }
}

impl ReplicaLock {
    /// Holds the lock until `stop`, then releases it. If its connection is lost, as when Postgres
    /// restarts, the lock is taken again.
    ///
    /// # Errors
    /// `internal` with advice for the operator if another process took the lock in the meantime:
    /// this process must then stop serving.
    pub async fn keep(self, stop: CancellationToken) -> Result<()> {
        match self.0 {
            Kind::Postgres(lock) => lock.keep(stop).await,
            Kind::Sqlite(file) => {
                stop.cancelled().await;
                drop(file);
                Ok(())
            }
        }
    }
}

impl SessionLock {
    async fn keep(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }

            let ping = tokio::time::timeout(CALL_MAX, self.holder.connection.ping()).await;
            if !matches!(ping, Ok(Ok(()))) {
                tracing::warn!("lost the connection that holds the replica lock; taking it again");
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    retaken = self.retake() => retaken?,
                }
            }
        }
        let _ = tokio::time::timeout(CALL_MAX, self.holder.connection.close()).await;
        Ok(())
    }

    /// Tries until the database answers. Then the lock is released within a short time, or another
    /// process has it.
    async fn retake(&mut self) -> Result<()> {
        loop {
            match self.try_to_retake().await {
                Ok(Some(holder)) => {
                    self.holder = holder;
                    tracing::info!("took the replica lock again");
                    return Ok(());
                }
                Ok(None) => return Err(refusal(self.shared)),
                Err(error) => {
                    tracing::debug!(%error, "failed to take the replica lock; retried in 200 ms");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_to_retake(&self) -> Result<Option<Holder>> {
        let mut connection = connect(&self.options).await?;
        // The old session may still exist in the database, which has not noticed that the
        // connection is broken.
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE pid = $1 AND backend_start::text = $2";
        let Identity { pid, started } = self.holder.identity.clone();
        let ending = sqlx::query(terminate).bind(pid).bind(started).execute(&mut connection);
        in_time(ending).await?;

        take(connection, self.shared).await
    }
}

/// Tries to take the lock for up to [`HANDOVER_MAX`]. The lock is tried repeatedly: a session that
/// waits for a lock inside Postgres holds a snapshot, and migrations wait for all snapshots.
async fn take(mut connection: PgConnection, shared: bool) -> Result<Option<Holder>> {
    let sql = if shared {
        "SELECT pg_try_advisory_lock_shared($1)"
    } else {
        "SELECT pg_try_advisory_lock($1)"
    };

    let start = Instant::now();
    loop {
        if in_time(sqlx::query_scalar::<_, bool>(sql).bind(KEY).fetch_one(&mut connection)).await? {
            let own = "SELECT pid, backend_start::text AS started FROM pg_stat_activity \
                       WHERE pid = pg_backend_pid()";
            let identity = in_time(sqlx::query_as(own).fetch_one(&mut connection)).await?;
            return Ok(Some(Holder { connection, identity }));
        }

        if start.elapsed() > HANDOVER_MAX {
            let _ = connection.close().await;
            return Ok(None);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Tries to take the lock of a file for up to [`HANDOVER_MAX`].
async fn take_file(path: &Path) -> Result<File> {
    let failed = |error: io::Error| {
        Error::internal(io::Error::other(format!("can't lock {}: {error}", path.display())))
    };
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;

    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() <= HANDOVER_MAX => {
                tokio::time::sleep(RETRY).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::internal(io::Error::other(format!(
                    "another `starling serve` holds {}, and only one process can serve an SQLite \
                     file: stop the other process, give this one another STARLING_DATA_DIR, or use \
                     Postgres and Redis for several replicas",
                    path.display()
                ))));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    // A lock on a standby does not exist on the primary.
    in_time(connect_to_primary(options)).await
}

async fn in_time<T>(call: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    tokio::time::timeout(CALL_MAX, call).await.map_err(Error::unavailable)?.map_err(failure)
}

/// The error if another replica holds the lock, with advice for the operator.
fn refusal(shared: bool) -> Error {
    Error::internal(io::Error::other(if shared {
        "a replica without REDIS_URL serves on this database, and the two would not receive each \
         other's changes: set the same REDIS_URL on that replica, or stop it"
    } else {
        "another replica serves on this database, and without Redis the two would not receive each \
         other's changes: set the same REDIS_URL on all replicas, or stop the other replica"
    }))
}
