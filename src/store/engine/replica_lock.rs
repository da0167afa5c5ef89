//! Who may serve on a database: one replica alone, or a fleet that shares a Redis. Never both, and
//! never two alone: each would believe that it hears of every change.
//!
//! On Postgres an advisory lock, held by a connection of its own for as long as the process serves:
//! alone it is held by itself, in a fleet it is shared. On SQLite a lock on a file beside the
//! database's. Either ends with its holder, so a replica that was killed leaves nothing behind.

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

/// The file whose lock is the right to serve on the SQLite file beside it. Always empty; it may
/// stay when nobody serves.
const FILE: &str = "starling.lock";
/// The key of the lock in Postgres: "replicas" in ASCII.
const KEY: i64 = 0x7265_706c_6963_6173;
/// How long a predecessor that is just going away may take.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// Pause between two looks at the connection that holds the lock. With [`CALL_MAX`] and
/// [`HANDOVER_MAX`] it bounds how long two may serve that should not.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the connection may take to answer, or to be made.
const CALL_MAX: Duration = Duration::from_secs(2);

/// The right to serve, held while [`ReplicaLock::keep`] runs.
pub struct ReplicaLock(Kind);

#[expect(clippy::large_enum_variant, reason = "there is one a process")]
enum Kind {
    Postgres(SessionLock),
    Sqlite(File),
}

/// A lock that may be lost with its session, and taken again.
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

/// What names a session for good: a process id may come again, but not with the same start.
#[derive(Clone, FromRow)]
struct Identity {
    pid: i32,
    started: String,
}

impl Store {
    /// Takes the right to serve on this database: `shared` by replicas of one fleet, else alone.
    /// Waits a moment for a predecessor to go away. On SQLite there is no fleet, and `shared` means
    /// nothing.
    ///
    /// # Errors
    /// `internal` with a sentence for the operator if another holds it, `unavailable` if the
    /// database is away.
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
    /// Keeps the lock until `stop`, then gives it back. If its connection is lost, as when Postgres
    /// restarts, the lock is taken again.
    ///
    /// # Errors
    /// `internal` with a sentence for the operator if another got it meanwhile: then this process
    /// must not go on.
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
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let looking = tokio::time::timeout(CALL_MAX, self.holder.connection.ping()).await;
            if !matches!(looking, Ok(Ok(()))) {
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

    /// Tries until the database answers; then the lock is free within a moment, or somebody else's.
    async fn retake(&mut self) -> Result<()> {
        loop {
            match self.try_to_retake().await {
                Ok(Some(holder)) => {
                    self.holder = holder;
                    tracing::info!("holds the replica lock again");
                    return Ok(());
                }
                Ok(None) => return Err(refusal(self.shared)),
                Err(error) => {
                    tracing::debug!(%error, "could not take the replica lock; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_to_retake(&self) -> Result<Option<Holder>> {
        let mut connection = connect(&self.options).await?;
        // The old session may live on in the database, which has not noticed that nobody is at its
        // other end.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
        let Identity { pid, started } = self.holder.identity.clone();
        let ending = sqlx::query(end).bind(pid).bind(started).execute(&mut connection);
        in_time(ending).await?;
        take(connection, self.shared).await
    }
}

/// Tries to take the lock for as long as a predecessor may need. It is never waited for inside the
/// database, where a session that waits holds a snapshot that migrations wait for in turn.
async fn take(mut connection: PgConnection, shared: bool) -> Result<Option<Holder>> {
    let sql = if shared {
        "SELECT pg_try_advisory_lock_shared($1)"
    } else {
        "SELECT pg_try_advisory_lock($1)"
    };
    let start = Instant::now();
    loop {
        if in_time(sqlx::query_scalar::<_, bool>(sql).bind(KEY).fetch_one(&mut connection)).await? {
            let own = "SELECT pid, backend_start::text AS started FROM pg_stat_activity WHERE pid = pg_backend_pid()";
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

/// The same for the lock of a file.
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
                tokio::time::sleep(RETRY).await
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::internal(io::Error::other(format!(
                    "another `starling serve` holds {}: one process serves on an SQLite file; stop the other one, give \
                     this one another STARLING_DATA_DIR, or use Postgres and Redis for a fleet",
                    path.display()
                ))));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    // A lock on a standby is one that no primary knows of.
    in_time(connect_to_primary(options)).await
}

async fn in_time<T>(call: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    tokio::time::timeout(CALL_MAX, call).await.map_err(Error::unavailable)?.map_err(failure)
}

fn refusal(shared: bool) -> Error {
    Error::internal(io::Error::other(if shared {
        "a replica without REDIS_URL serves on this database, and would not hear of what this one does: give it the same \
         REDIS_URL, or stop it"
    } else {
        "another replica serves on this database, and without Redis the two would not hear of each other's changes: set \
         REDIS_URL on all replicas for a fleet, or stop the other one"
    }))
}
