//! The epoch of the log: whether the database still has the history that clients have seen.
//!
//! A database can fall back to an earlier state: a standby that lagged behind takes over, or a
//! backup is restored. Then revisions are assigned a second time, with other contents, which the
//! numbers alone can't show. So the database stores an epoch and the origin to which it belongs. An
//! origin names one history: on Postgres the system, the database, the table and the timeline of
//! the write-ahead log; on SQLite the file. A replica replaces the epoch if it finds the log on
//! another origin, or behind the position that it saw before. One conditional statement replaces
//! it, so all replicas get the same new epoch.
//!
//! A replica can't detect a restore of the same origin to a consistent state that is no older than
//! the last mark. The operator then runs `starling epoch renew`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;
use sqlx::FromRow;

use super::{Db, MapOkDrop, Store, failure, lent, on, pool, timed};
use crate::metrics;
use crate::model::limits::LOG_STEP_BACK_BYTES_MIN;
use crate::model::{Epoch, Error, PresentEpoch, Result};

/// The file beside SQLite's that stores the mark: the epoch and the position that were served last.
const MARK_FILE: &str = "starling.epoch";

/// Reads the row, and the state of the server, in one round trip.
///
/// An ordinary user may read all of it. The timeline is that of the present position: right after
/// a promotion, the control file still names the old timeline.
const POSTGRES_STATE: &str = "
    SELECT e.epoch, e.origin AS known_origin, pg_is_in_recovery() AS in_recovery,
        CASE WHEN NOT pg_is_in_recovery() THEN CONCAT_WS('/',
            (SELECT system_identifier FROM pg_control_system()),
            (SELECT oid FROM pg_database WHERE datname = current_database()),
            'log_epoch'::regclass::oid,
            LEFT(pg_walfile_name(pg_current_wal_lsn()), 8)) END AS origin,
        CASE WHEN NOT pg_is_in_recovery()
            THEN (pg_current_wal_lsn() - '0/0'::pg_lsn)::BIGINT END AS position
    FROM (SELECT 1) one LEFT JOIN log_epoch e ON e.id = 1";
const SQLITE_STATE: &str =
    "SELECT epoch, origin AS known_origin, mark AS position FROM log_epoch WHERE id = 1";

/// The state of the log as this process saw it last.
#[derive(Debug, Default)]
pub(in crate::store) struct Log {
    present: PresentEpoch,
    seen: Mutex<Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// The position of the log: bytes of the write-ahead log on Postgres, the mark on SQLite.
    position: i64,
    /// The origin of the log; empty before it was first read.
    origin: String,
    /// The content of the mark file.
    marked: Option<(Epoch, i64)>,
}

/// The state of the log in the database.
#[derive(Debug, Default)]
struct LogState {
    /// The stored epoch and the origin to which it belongs; `None` before the first replica served.
    row: Option<(Epoch, String)>,
    /// The present origin of the database.
    origin: String,
    position: i64,
}

#[derive(FromRow)]
struct PostgresRow {
    epoch: Option<Epoch>,
    known_origin: Option<String>,
    in_recovery: bool,
    origin: Option<String>,
    position: Option<i64>,
}

#[derive(FromRow)]
struct SqliteRow {
    epoch: Epoch,
    known_origin: String,
    position: i64,
}

impl Store {
    /// The present epoch, as of the last [`Store::check_log`].
    pub fn epoch(&self) -> Epoch {
        self.log.present.get()
    }

    /// The present epoch as a shared value, which follows later changes.
    pub fn present_epoch(&self) -> PresentEpoch {
        self.log.present.clone()
    }

    /// Checks whether the log is still the one that was served. If it is not, `fresh` becomes its
    /// epoch, unless another replica has replaced the epoch already. From then on, each connection
    /// that was opened before returns an error. Returns the present epoch.
    ///
    /// # Errors
    /// `unavailable` if the database is away or a standby. The epoch then stays unchecked.
    pub async fn check_log(&self, fresh: Epoch) -> Result<Epoch> {
        timed("check_log", || async {
            let state = self.read_state().await?;
            let epoch = match (&state.row, self.step_back(&state)) {
                (Some((epoch, _)), None) => *epoch,
                (row, reason) => {
                    let before = row.as_ref().map(|(epoch, _)| *epoch);
                    self.replace(before, fresh, &state.origin, reason).await?
                }
            };
            self.adopt(epoch, state).await
        })
        .await
    }

    /// Replaces the epoch `seen`, whose log was found to be behind what was served: by a hub that
    /// saw a chat step back, or by the operator. Does nothing if that epoch is replaced already.
    /// Returns the present epoch.
    ///
    /// # Errors
    /// `unavailable` if the database is away or a standby.
    pub async fn renew_epoch(
        &self,
        seen: Epoch,
        fresh: Epoch,
        reason: &'static str,
    ) -> Result<Epoch> {
        timed("renew_epoch", || async {
            let state = self.read_state().await?;
            let epoch = self.replace(Some(seen), fresh, &state.origin, Some(reason)).await?;
            self.adopt(epoch, state).await
        })
        .await
    }

    /// Writes the last mark of an SQLite file, when the process ends.
    pub(in crate::store) async fn mark_end(&self) {
        if !self.is_embedded() || self.epoch() == Epoch::default() {
            return;
        }
        let marking = async {
            let state = self.read_state().await?;
            match state.row {
                Some((epoch, _)) if epoch == self.epoch() => {
                    self.adopt(epoch, state).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = marking.await {
            tracing::warn!(
                %error,
                "failed to write starling.epoch: \
                 the next start may not detect that an older database file was restored"
            );
        }
    }

    /// Closes the connections to a server that has become a standby. Returns the error for it.
    pub(in crate::store) fn leave_standby(&self) -> Error {
        self.each_pool(pool::Pool::leave_standby);
        failure(pool::standby())
    }

    async fn read_state(&self) -> Result<LogState> {
        let path = match &self.probe {
            Db::Postgres(pool) => {
                let row: PostgresRow =
                    lent!(pool, |db| sqlx::query_as(POSTGRES_STATE).fetch_one(db))?;
                if row.in_recovery {
                    return Err(self.leave_standby());
                }
                return Ok(LogState {
                    row: row.epoch.zip(row.known_origin),
                    origin: row.origin.unwrap_or_default(),
                    position: row.position.unwrap_or_default(),
                });
            }
            Db::Sqlite(pool) => pool.connect_options().get_filename().to_path_buf(),
        };

        let row: Option<SqliteRow> =
            on!(&self.reader, |db| sqlx::query_as(SQLITE_STATE).fetch_optional(db))?;
        let origin = identity(&path).map_err(Error::internal)?;

        if self.log.seen.lock().origin.is_empty() {
            let marked = read_mark(&mark_file(&path)).await;
            self.log.seen.lock().marked = marked;
        }
        let position = row.as_ref().map_or(0, |row| row.position);

        Ok(LogState { row: row.map(|row| (row.epoch, row.known_origin)), origin, position })
    }

    /// The reason why the log can't be the one that was served; `None` if it may be the same.
    fn step_back(&self, state: &LogState) -> Option<&'static str> {
        let (epoch, known_origin) = state.row.as_ref()?;
        if *known_origin != state.origin {
            return Some("another origin");
        }

        let seen = self.log.seen.lock().clone();
        if self.is_embedded() {
            let is_older =
                |(marked, position): (Epoch, i64)| marked != *epoch || position > state.position;
            // The mark file is checked only once: no other process replaces the database file
            // while this one serves.
            return (seen.origin.is_empty() && seen.marked.is_some_and(is_older))
                .then_some("an older file");
        }

        let is_behind =
            seen.origin == state.origin && seen.position - state.position > LOG_STEP_BACK_BYTES_MIN;
        is_behind.then_some("an earlier position")
    }

    /// Stores `fresh` as the epoch if the stored epoch is still `before`. Returns the stored epoch.
    async fn replace(
        &self,
        before: Option<Epoch>,
        fresh: Epoch,
        origin: &str,
        reason: Option<&'static str>,
    ) -> Result<Epoch> {
        on!(self.writer(), |db| sqlx::query(
            "INSERT INTO log_epoch (id, epoch, origin) VALUES (1, $1, $2) \
             ON CONFLICT (id) DO UPDATE SET epoch = $1, origin = $2 WHERE log_epoch.epoch = $3"
        )
        .bind(fresh)
        .bind(origin)
        .bind(before)
        .execute(db)
        .map_ok_drop())?;

        let epoch: Epoch = on!(self.writer(), |db| sqlx::query_scalar(
            "SELECT epoch FROM log_epoch WHERE id = 1"
        )
        .fetch_one(db))?;

        if let Some(reason) = reason.filter(|_| epoch == fresh) {
            metrics::log_epoch_renewed(reason);
            tracing::error!(
                %epoch,
                reason,
                "the log fell back to an earlier state, so it gets a new epoch: \
                 every client reloads its chats"
            );
        }
        Ok(epoch)
    }

    /// Makes an epoch the present one. If it is a new one, closes the connections of the old epoch.
    async fn adopt(&self, epoch: Epoch, state: LogState) -> Result<Epoch> {
        let before = self.log.present.set(epoch);
        if before != epoch && before != Epoch::default() {
            self.each_pool(pool::Pool::fence);
        }

        let mark = (epoch, state.position);
        let is_marked = {
            let mut seen = self.log.seen.lock();
            (seen.position, seen.origin) = (state.position, state.origin);
            seen.marked.replace(mark) == Some(mark)
        };

        if let Db::Sqlite(pool) = &self.writer
            && !is_marked
        {
            let path = mark_file(pool.connect_options().get_filename());
            write_mark(&path, mark).await.map_err(Error::internal)?;
        }
        Ok(epoch)
    }

    fn each_pool(&self, act: impl Fn(&pool::Pool)) {
        for db in [&self.writer, &self.sessions.writer, &self.probe] {
            if let Db::Postgres(pool) = db {
                act(pool);
            }
        }
    }
}

/// The identity of a file. A file that replaces another one was created at another time, even if it
/// has the same inode. The device is not part of it, since its number can change when the machine
/// restarts.
fn identity(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(format!("{}/{}", metadata.ino(), born.map_or(0, |born| born.as_nanos())))
}

fn mark_file(database: &Path) -> PathBuf {
    database.with_file_name(MARK_FILE)
}

/// Reads the mark file; `None` if it does not exist or is damaged.
async fn read_mark(path: &Path) -> Option<(Epoch, i64)> {
    let text = tokio::fs::read_to_string(path).await.ok()?;
    let (epoch, mark) = text.trim().split_once(' ')?;
    Some((epoch.parse().ok()?, mark.parse().ok()?))
}

/// Replaces the mark file in one step, so that after a crash it has the old or the new content.
async fn write_mark(path: &Path, (epoch, mark): (Epoch, i64)) -> io::Result<()> {
    let new = path.with_extension("epoch.new");
    tokio::fs::write(&new, format!("{epoch} {mark}\n")).await?;
    tokio::fs::rename(&new, path).await
}
