//! What presence needs of the store: who may know of whom, and when somebody was last seen.

use super::{Db, MapOkDrop, Store, Tx, ended, failure, lent, on_lease, timed};
use crate::model::{Result, Timestamp, UserId};

/// Somebody who may know whether another is online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquaintance {
    /// Who may know.
    pub watcher: UserId,
    /// Of whom.
    pub watched: UserId,
    /// When `watched` was last seen; `None` if never.
    pub last_seen_at: Option<Timestamp>,
}

impl Store {
    /// Which of these pairs of watcher and watched share a chat now.
    pub async fn acquaintances(&self, pairs: &[(UserId, UserId)]) -> Result<Vec<Acquaintance>> {
        timed("acquaintances", || async {
            let rows: Vec<(UserId, UserId, Option<Timestamp>)> = match self.reader() {
                Db::Postgres(pool) => {
                    let (watchers, watched): (Vec<uuid::Uuid>, Vec<uuid::Uuid>) =
                        pairs.iter().map(|(watcher, watched)| (watcher.0, watched.0)).unzip();
                    // LATERAL with a limit: two index look-ups a pair, whatever the planner thinks
                    // of the tables.
                    lent!(pool, |db| sqlx::query_as(
                        "SELECT p.watcher, p.watched, u.last_seen_at_ms
                         FROM UNNEST($1::uuid[], $2::uuid[]) AS p (watcher, watched)
                         JOIN users u ON u.id = p.watched
                         CROSS JOIN LATERAL (
                             SELECT 1 FROM members a JOIN members b ON b.chat_id = a.chat_id
                             JOIN chats c ON c.id = a.chat_id AND c.removed_at_ms IS NULL
                             WHERE a.user_id = p.watcher AND a.left_rev IS NULL
                               AND b.user_id = p.watched AND b.left_rev IS NULL LIMIT 1
                         ) AS shared",
                    )
                    .bind(watchers)
                    .bind(watched)
                    .fetch_all(db))?
                }
                Db::Sqlite(db) => {
                    let mut found = Vec::with_capacity(pairs.len());
                    for (watcher, watched) in pairs {
                        let row: Option<(Option<Timestamp>,)> = sqlx::query_as(
                            "SELECT u.last_seen_at_ms FROM users u WHERE u.id = $2 AND EXISTS (
                                 SELECT 1 FROM members a JOIN members b ON b.chat_id = a.chat_id
                                 JOIN chats c ON c.id = a.chat_id AND c.removed_at_ms IS NULL
                                 WHERE a.user_id = $1 AND a.left_rev IS NULL AND b.user_id = $2 AND b.left_rev IS NULL
                             )",
                        )
                        .bind(watcher)
                        .bind(watched)
                        .fetch_optional(db)
                        .await
                        .map_err(failure)?;
                        found.extend(row.map(|(last_seen_at,)| (*watcher, *watched, last_seen_at)));
                    }
                    found
                }
            };
            let acquaintance = |(watcher, watched, last_seen_at)| Acquaintance { watcher, watched, last_seen_at };
            Ok(rows.into_iter().map(acquaintance).collect())
        })
        .await
    }

    /// Notes when users were last seen, each named once. It never moves back.
    pub async fn note_seen(&self, users: &[(UserId, Timestamp)]) -> Result<()> {
        timed("note_seen", || async {
            let mut work = self.begin().await?;
            match &mut work.inner {
                Tx::Postgres(lease) => {
                    let (ids, times): (Vec<uuid::Uuid>, Vec<i64>) =
                        users.iter().map(|(id, at)| (id.0, at.as_ms())).unzip();
                    // Locked in the order of their ids, as everywhere, so that two replicas can't
                    // block each other.
                    on_lease!(lease, |db| sqlx::query(
                        "WITH seen AS (
                             SELECT u.id, s.at_ms FROM UNNEST($1::uuid[], $2::bigint[]) AS s (id, at_ms)
                             JOIN users u ON u.id = s.id ORDER BY u.id FOR NO KEY UPDATE OF u
                         )
                         UPDATE users SET last_seen_at_ms = seen.at_ms FROM seen
                         WHERE users.id = seen.id
                           AND (users.last_seen_at_ms IS NULL OR users.last_seen_at_ms < seen.at_ms)",
                    )
                    .bind(ids)
                    .bind(times)
                    .execute(db)
                    .map_ok_drop())?;
                }
                Tx::Sqlite(tx) => {
                    for (id, at) in users {
                        sqlx::query(
                            "UPDATE users SET last_seen_at_ms = $2
                             WHERE id = $1 AND (last_seen_at_ms IS NULL OR last_seen_at_ms < $2)",
                        )
                        .bind(id)
                        .bind(at)
                        .execute(&mut **tx)
                        .map_ok_drop()
                        .await
                        .map_err(failure)?;
                    }
                }
                Tx::Ended => return Err(ended()),
            }
            work.commit().await
        })
        .await
    }
}
