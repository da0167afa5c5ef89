//! Cleaning: deletes rows that are no longer needed, in bounded batches. After a long pause the job
//! runs more batches, not larger ones.

use std::collections::BTreeMap;

use super::ended_session::EndedSession;
use super::{MapOkDrop, Store, Tx, Work, ended, failure, on, on_lease, timed, within};
use crate::model::limits::{JOB_BATCH, TOMBSTONE_LIFE};
use crate::model::{ChatId, Result, Rev, Timestamp, UserId};

/// The number of rows that one round deleted, by kind. A round that did not fill its batches found
/// nothing more to delete.
#[derive(Default)]
pub struct DeletedRows {
    /// Sessions that expired.
    pub sessions: Vec<EndedSession>,
    /// Invites that expired.
    pub invites: u64,
    /// Messages and members of removed chats, and the chats.
    pub chat_rows: u64,
    /// Tombstones: rows of members who left longer ago than [`TOMBSTONE_LIFE`].
    pub tombstones: u64,
    /// Whether there may be more rows to delete.
    pub more: bool,
}

impl Store {
    /// Deletes up to one batch of each kind of row that is no longer needed at `now`.
    pub async fn delete_expired(&self, now: Timestamp) -> Result<DeletedRows> {
        timed("delete_expired", || async {
            let sessions: Vec<EndedSession> = on!(self.writer(), |db| sqlx::query_as(
                "DELETE FROM sessions WHERE expires_at_ms <= $1
                 AND id IN (SELECT id FROM sessions WHERE expires_at_ms <= $1
                            ORDER BY expires_at_ms LIMIT $2)
                 RETURNING id, token_hash"
            )
            .bind(now)
            .bind(JOB_BATCH)
            .fetch_all(db))?;

            let invites: Vec<String> = on!(self.writer(), |db| sqlx::query_scalar(
                "DELETE FROM invites WHERE expires_at_ms <= $1
                 AND code IN (SELECT code FROM invites WHERE expires_at_ms <= $1
                              ORDER BY expires_at_ms LIMIT $2)
                 RETURNING code"
            )
            .bind(now)
            .bind(JOB_BATCH)
            .fetch_all(db))?;

            let chat_rows = self.sweep_removed_chat().await? + self.forget_removed(now).await?;
            let tombstones = self.forget_departed(now).await?;

            let batch = usize::try_from(JOB_BATCH).unwrap_or(usize::MAX);
            let filled = sessions.len() == batch || invites.len() == batch;
            Ok(DeletedRows {
                more: filled || chat_rows > 0 || tombstones > 0,
                sessions,
                invites: invites.len() as u64,
                chat_rows,
                tombstones,
            })
        })
        .await
    }

    /// Deletes up to one batch of rows of removed chats. These are due at once, so the job calls
    /// this while the clock is in doubt.
    pub async fn delete_removed_chats(&self) -> Result<DeletedRows> {
        timed("delete_removed_chats", || async {
            let chat_rows = self.sweep_removed_chat().await?;
            Ok(DeletedRows { chat_rows, more: chat_rows > 0, ..DeletedRows::default() })
        })
        .await
    }

    /// Deletes a batch of rows of one removed chat: of the chats that no other replica clears now,
    /// the one that was removed first. Members go before messages, since some queries pass over the
    /// rows of members. The chat's own row stays until [`Store::forget_removed`], since a replica
    /// that missed the removal finds it by this row.
    async fn sweep_removed_chat(&self) -> Result<u64> {
        let mut work = self.begin().await?;
        let Some(chat_id) = lock_removed_chat(&mut work).await? else { return Ok(0) };
        let members: Vec<UserId> = within!(work, |db| {
            sqlx::query_scalar(
                "DELETE FROM members WHERE chat_id = $1
                 AND user_id IN (
                     SELECT user_id FROM members WHERE chat_id = $1 ORDER BY user_id LIMIT $2)
                 RETURNING user_id",
            )
            .bind(chat_id)
            .bind(JOB_BATCH)
            .fetch_all(db)
        })?;
        if !members.is_empty() {
            work.commit().await?;
            return Ok(members.len() as u64);
        }

        let messages: Vec<i64> = within!(work, |db| {
            sqlx::query_scalar(
                "DELETE FROM messages WHERE chat_id = $1
                 AND id IN (SELECT id FROM messages WHERE chat_id = $1 ORDER BY id LIMIT $2)
                 RETURNING id",
            )
            .bind(chat_id)
            .bind(JOB_BATCH)
            .fetch_all(db)
        })?;
        if !messages.is_empty() {
            work.commit().await?;
            return Ok(messages.len() as u64);
        }

        Ok(0)
    }

    /// Deletes a batch of rows of chats that were removed before `now` and have neither members nor
    /// messages left.
    async fn forget_removed(&self, now: Timestamp) -> Result<u64> {
        let gone: Vec<ChatId> = on!(self.writer(), |db| {
            sqlx::query_scalar(
                "DELETE FROM chats WHERE id IN (
                     SELECT c.id FROM chats c WHERE c.removed_at_ms <= $1
                       AND NOT EXISTS (SELECT 1 FROM members m WHERE m.chat_id = c.id)
                       AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.chat_id = c.id)
                     ORDER BY c.removed_at_ms LIMIT $2
                 ) RETURNING id",
            )
            .bind(now)
            .bind(JOB_BATCH)
            .fetch_all(db)
        })?;
        Ok(gone.len() as u64)
    }

    /// Deletes a batch of tombstones, and stores in each of their chats the revision below which a
    /// client must start anew.
    async fn forget_departed(&self, now: Timestamp) -> Result<u64> {
        let mut work = self.begin().await?;
        let old: Vec<(ChatId, Rev)> = within!(work, |db| {
            sqlx::query_as(
                "SELECT chat_id, left_rev FROM members WHERE left_at_ms <= $1
                 ORDER BY left_at_ms, chat_id, left_rev LIMIT $2",
            )
            .bind(now.minus(TOMBSTONE_LIFE))
            .bind(JOB_BATCH)
            .fetch_all(db)
        })?;

        let mut newest: BTreeMap<ChatId, Rev> = BTreeMap::new();
        for (chat_id, left_rev) in old {
            let rev = newest.entry(chat_id).or_default();
            *rev = left_rev.max(*rev);
        }

        let mut forgotten = 0;
        for (chat_id, rev) in newest {
            // The chat before its members, in the order of every unit of work: a user who joins
            // again holds the chat's row lock and waits for the member's row.
            within!(work, |db| sqlx::query(
                "UPDATE chats SET forgotten_rev = $2 WHERE id = $1 AND forgotten_rev < $2"
            )
            .bind(chat_id)
            .bind(rev)
            .execute(db)
            .map_ok_drop())?;

            let gone: Vec<UserId> = within!(work, |db| {
                sqlx::query_scalar(
                    "DELETE FROM members
                     WHERE chat_id = $1 AND left_at_ms <= $2 AND left_rev <= $3
                     RETURNING user_id",
                )
                .bind(chat_id)
                .bind(now.minus(TOMBSTONE_LIFE))
                .bind(rev)
                .fetch_all(db)
            })?;
            forgotten += gone.len() as u64;
        }
        work.commit().await?;
        Ok(forgotten)
    }
}

/// Locks the chat that was removed first among those that still have members or messages. Without
/// the lock, two replicas could clear one chat at once. One of them would find its batch deleted,
/// take the chat for empty, and never delete the other rows.
async fn lock_removed_chat(work: &mut Work) -> Result<Option<ChatId>> {
    work.count_statement();
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = "SELECT c.id FROM chats c WHERE c.removed_at_ms IS NOT NULL
                         AND (EXISTS (SELECT 1 FROM members m WHERE m.chat_id = c.id)
                              OR EXISTS (SELECT 1 FROM messages m WHERE m.chat_id = c.id))
                       ORDER BY c.removed_at_ms LIMIT 1 FOR NO KEY UPDATE OF c SKIP LOCKED";
            on_lease!(lease, |db| sqlx::query_scalar(sql).fetch_optional(db))
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT c.id FROM chats c WHERE c.removed_at_ms IS NOT NULL
                         AND (EXISTS (SELECT 1 FROM members m WHERE m.chat_id = c.id)
                              OR EXISTS (SELECT 1 FROM messages m WHERE m.chat_id = c.id))
                       ORDER BY c.removed_at_ms LIMIT 1";
            sqlx::query_scalar(sql).fetch_optional(&mut **tx).await.map_err(failure)
        }
        Tx::Ended => Err(ended()),
    }
}
