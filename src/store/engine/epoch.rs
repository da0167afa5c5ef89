//! The epoch of the log: whether this is still the history that was served.
//!
//! A database may fall back to an earlier state: a standby that lagged behind takes over, or a
//! backup is restored. Then revisions are given out a second time, with other contents, and numbers
//! alone can't show it. So the database carries an epoch and the origin that it belongs to. An
//! origin names one history: on Postgres the system, the database, the table and the timeline of
//! the write-ahead log; on SQLite the file. A replica that finds the log on another origin, or
//! behind what was seen of it, replaces the epoch; one conditional statement does it, so all
//! replicas come to the same one.
//!
//! What can't be seen is a restore of the same origin to a state that is consistent and no older
//! than the last mark: `starling epoch renew` is for that.

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

/// The file beside SQLite's that says how far this history was served.
const MARK_FILE: &str = "starling.epoch";

/// What the row says, and what the server says of itself, in one round trip.
///
/// Everything in it is open to an ordinary user. The timeline is that of the position now: right
/// after a promotion the control file still names the old one.
const LOOK_ON_POSTGRES: &str = "
    SELECT e.epoch, e.origin AS known_origin, pg_is_in_recovery() AS in_recovery,
        CASE WHEN NOT pg_is_in_recovery() THEN CONCAT_WS('/',
            (SELECT system_identifier FROM pg_control_system()),
            (SELECT oid FROM pg_database WHERE datname = current_database()),
            'log_epoch'::regclass::oid,
            LEFT(pg_walfile_name(pg_current_wal_lsn()), 8)) END AS origin,
        CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_lsn() - '0/0'::pg_lsn)::BIGINT END AS position
    FROM (SELECT 1) one LEFT JOIN log_epoch e ON e.id = 1";
const LOOK_ON_SQLITE: &str =
    "SELECT epoch, origin AS known_origin, mark AS position FROM log_epoch WHERE id = 1";

/// What this process knows of the log.
#[derive(Debug, Default)]
pub(in crate::store) struct Log {
    present: PresentEpoch,
    seen: Mutex<Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// Where the log was at the last look: bytes of the write-ahead log on Postgres, the mark on
    /// SQLite.
    position: i64,
    /// The origin then; empty before the first look.
    origin: String,
    /// What the file beside SQLite's says.
    marked: Option<(Epoch, i64)>,
}

/// What a look at the database found.
#[derive(Debug, Default)]
struct Look {
    /// The row's epoch and the origin that it belongs to; `None` before the first replica served.
    row: Option<(Epoch, String)>,
    /// What the server says it is.
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
    /// The epoch in force, as of the last [`Store::watch_log`].
    pub fn epoch(&self) -> Epoch {
        self.log.present.get()
    }

    /// The same, for others to follow.
    pub fn present_epoch(&self) -> PresentEpoch {
        self.log.present.clone()
    }

    /// Looks whether the log is still the one that was served. If not, `fresh` becomes its epoch,
    /// unless another replica was faster. From then on every answer of an older connection is an
    /// error. Returns the epoch in force.
    ///
    /// # Errors
    /// `unavailable` if the database is away or a standby: then nothing is known.
    pub async fn watch_log(&self, fresh: Epoch) -> Result<Epoch> {
        timed("watch_log", || async {
            let look = self.look().await?;
            let epoch = match (&look.row, self.step_back(&look)) {
                (Some((epoch, _)), None) => *epoch,
                (row, reason) => {
                    self.replace(row.as_ref().map(|(epoch, _)| *epoch), fresh, &look.origin, reason)
                        .await?
                }
            };
            self.adopt(epoch, look).await
        })
        .await
    }

    /// Replaces the epoch, since the log was found to be behind what `seen` served: by a hub that
    /// saw it, or by the operator, who knows of it. Nothing happens if it is replaced already.
    /// Returns the epoch in force.
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
            let look = self.look().await?;
            let epoch = self.replace(Some(seen), fresh, &look.origin, Some(reason)).await?;
            self.adopt(epoch, look).await
        })
        .await
    }

    /// Notes beside an SQLite file how far it was served in the end.
    pub(in crate::store) async fn mark_end(&self) {
        if !self.is_embedded() || self.epoch() == Epoch::default() {
            return;
        }
        let noting = async {
            let look = self.look().await?;
            match look.row {
                Some((epoch, _)) if epoch == self.epoch() => {
                    self.adopt(epoch, look).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = noting.await {
            tracing::warn!(%error, "could not note how far this history was served");
        }
    }

    /// The error of a server that has become a standby; the connections to it are left.
    pub(in crate::store) fn leave_standby(&self) -> Error {
        self.each_pool(pool::Pool::leave_standby);
        failure(pool::standby())
    }

    async fn look(&self) -> Result<Look> {
        let path = match &self.probe {
            Db::Postgres(pool) => {
                let row: PostgresRow =
                    lent!(pool, |db| sqlx::query_as(LOOK_ON_POSTGRES).fetch_one(db))?;
                if row.in_recovery {
                    return Err(self.leave_standby());
                }
                return Ok(Look {
                    row: row.epoch.zip(row.known_origin),
                    origin: row.origin.unwrap_or_default(),
                    position: row.position.unwrap_or_default(),
                });
            }
            Db::Sqlite(pool) => pool.connect_options().get_filename().to_path_buf(),
        };
        let row: Option<SqliteRow> =
            on!(&self.reader, |db| sqlx::query_as(LOOK_ON_SQLITE).fetch_optional(db))?;
        let origin = identity(&path).map_err(Error::internal)?;
        if self.log.seen.lock().origin.is_empty() {
            let marked = read_mark(&mark_file(&path)).await;
            self.log.seen.lock().marked = marked;
        }
        let position = row.as_ref().map_or(0, |row| row.position);
        Ok(Look { row: row.map(|row| (row.epoch, row.known_origin)), origin, position })
    }

    /// Why the log can't be the one that was served; `None` if it may be.
    fn step_back(&self, look: &Look) -> Option<&'static str> {
        let (epoch, known_origin) = look.row.as_ref()?;
        if *known_origin != look.origin {
            return Some("another origin");
        }
        let seen = self.log.seen.lock().clone();
        if self.is_embedded() {
            let is_older =
                |(marked, position): (Epoch, i64)| marked != *epoch || position > look.position;
            // Asked of the file once: while this process serves, nobody replaces the database under
            // it.
            return (seen.origin.is_empty() && seen.marked.is_some_and(is_older))
                .then_some("an older file");
        }
        let is_behind =
            seen.origin == look.origin && seen.position - look.position > LOG_STEP_BACK_BYTES_MIN;
        is_behind.then_some("an earlier position")
    }

    /// Puts `fresh` into the row, if it still holds `before`. Returns what it holds then.
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
            tracing::error!(%epoch, reason, "the log fell back, so it has a new epoch: every client reloads its chats");
        }
        Ok(epoch)
    }

    /// Takes an epoch for the one in force, and leaves the connections of another.
    async fn adopt(&self, epoch: Epoch, look: Look) -> Result<Epoch> {
        let before = self.log.present.set(epoch);
        if before != epoch && before != Epoch::default() {
            self.each_pool(pool::Pool::fence);
        }
        let mark = (epoch, look.position);
        let is_marked = {
            let mut seen = self.log.seen.lock();
            (seen.position, seen.origin) = (look.position, look.origin);
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

/// What names a file: one that was put in the place of another was born at another time, also where
/// it got the same inode. Not the device, whose number may be another after a restart of the
/// machine.
fn identity(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(format!("{}/{}", metadata.ino(), born.map_or(0, |born| born.as_nanos())))
}

fn mark_file(database: &Path) -> PathBuf {
    database.with_file_name(MARK_FILE)
}

/// What the file says; `None` if there is none or it is damaged.
async fn read_mark(path: &Path) -> Option<(Epoch, i64)> {
    let text = tokio::fs::read_to_string(path).await.ok()?;
    let (epoch, mark) = text.trim().split_once(' ')?;
    Some((epoch.parse().ok()?, mark.parse().ok()?))
}

/// Replaces the file in one step, so that a crash leaves the old one or the new one.
async fn write_mark(path: &Path, (epoch, mark): (Epoch, i64)) -> io::Result<()> {
    let new = path.with_extension("epoch.new");
    tokio::fs::write(&new, format!("{epoch} {mark}\n")).await?;
    tokio::fs::rename(&new, path).await
}
