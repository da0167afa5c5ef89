//! The rows that presence needs: which users share a chat, and when users were last seen.

use super::{Db, MapOkDrop, Store, Tx, ended, failure, lent, on_lease, timed};
use crate::model::{Result, Timestamp, UserId};

/// Two users who share a chat, so that one is allowed to watch the presence of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedChat {
    /// The user who watches.
    pub watcher: UserId,
    /// The user whose presence is watched.
    pub watched: UserId,
    /// The last time at which `watched` was online; `None` if never.
    pub last_seen_at: Option<Timestamp>,
}

impl Store {
    /// Returns the pairs of watcher and watched that share a chat now.
    pub async fn users_sharing_a_chat(
        &self,
        pairs: &[(UserId, UserId)],
    ) -> Result<Vec<SharedChat>> {
        timed("users_sharing_a_chat", || async {
            let rows: Vec<(UserId, UserId, Option<Timestamp>)> = match self.reader() {
                Db::Postgres(pool) => {
                    let (watchers, watched): (Vec<uuid::Uuid>, Vec<uuid::Uuid>) =
                        pairs.iter().map(|(watcher, watched)| (watcher.0, watched.0)).unzip();
                    // LATERAL with a limit: two index look-ups for each pair, whatever Postgres's
                    // statistics of the tables are.
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
                                 WHERE a.user_id = $1 AND a.left_rev IS NULL
                                   AND b.user_id = $2 AND b.left_rev IS NULL
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

            let acquaintance =
                |(watcher, watched, last_seen_at)| SharedChat { watcher, watched, last_seen_at };
            Ok(rows.into_iter().map(acquaintance).collect())
        })
        .await
    }

    /// Stores when users were last seen, each named once. The stored time never moves back.
    pub async fn set_last_seen(&self, users: &[(UserId, Timestamp)]) -> Result<()> {
        timed("set_last_seen", || async {
            let mut work = self.begin().await?;
            match &mut work.inner {
                Tx::Postgres(lease) => {
                    let (ids, times): (Vec<uuid::Uuid>, Vec<i64>) =
                        users.iter().map(|(id, at)| (id.0, at.as_ms())).unzip();
                    // Users are locked in the order of their ids, as in every unit of work, so that
                    // two replicas cannot deadlock.
                    on_lease!(lease, |db| sqlx::query(
                        "WITH seen AS (
                             SELECT u.id, s.at_ms
                             FROM UNNEST($1::uuid[], $2::bigint[]) AS s (id, at_ms)
                             JOIN users u ON u.id = s.id ORDER BY u.id FOR NO KEY UPDATE OF u
                         )
                         UPDATE users SET last_seen_at_ms = seen.at_ms FROM seen
                         WHERE users.id = seen.id
                           AND (users.last_seen_at_ms IS NULL
                                OR users.last_seen_at_ms < seen.at_ms)",
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
