//! Cleaning up what nothing refers to, in bounded batches: a long absence of the job makes more
//! batches, not longer ones.

use std::collections::BTreeMap;

use super::sessions::EndedSession;
use super::{MapOkDrop, Store, Tx, Work, ended, failure, on, on_lease, timed, within};
use crate::model::limits::{JOB_BATCH, TOMBSTONE_LIFE};
use crate::model::{ChatId, Result, Rev, Timestamp, UserId};

/// What one round removed. A round that did not fill its batches leaves nothing behind.
#[derive(Default)]
pub struct Swept {
    /// Sessions past their end.
    pub sessions: Vec<EndedSession>,
    /// Invites that are used up or expired.
    pub invites: u64,
    /// Messages and members of removed chats, and the chats.
    pub chat_rows: u64,
    /// Rows that remembered who left long ago.
    pub tombstones: u64,
    /// Whether there may be more.
    pub more: bool,
}

impl Store {
    /// Removes up to one batch of each kind of thing that is no longer of use at `now`.
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept> {
        timed("sweep", || async {
            let sessions: Vec<EndedSession> = on!(self.writer(), |db| sqlx::query_as(
                "DELETE FROM sessions WHERE expires_at_ms <= $1
                 AND id IN (SELECT id FROM sessions WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2) RETURNING id, token_hash"
            )
            .bind(now)
            .bind(JOB_BATCH)
            .fetch_all(db))?;
            let invites: Vec<String> = on!(self.writer(), |db| sqlx::query_scalar(
                "DELETE FROM invites WHERE expires_at_ms <= $1
                 AND code IN (SELECT code FROM invites WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2) RETURNING code"
            )
            .bind(now)
            .bind(JOB_BATCH)
            .fetch_all(db))?;
            let chat_rows = self.sweep_removed_chat().await? + self.forget_removed(now).await?;
            let tombstones = self.forget_departed(now).await?;
            let batch = usize::try_from(JOB_BATCH).unwrap_or(usize::MAX);
            Ok(Swept {
                more: sessions.len() == batch || invites.len() == batch || chat_rows > 0 || tombstones > 0,
                sessions,
                invites: invites.len() as u64,
                chat_rows,
                tombstones,
            })
        })
        .await
    }

    /// Removes up to one batch of what is left of removed chats, which is due whatever the time is.
    pub async fn sweep_removed(&self) -> Result<Swept> {
        timed("sweep_removed", || async {
            let chat_rows = self.sweep_removed_chat().await?;
            Ok(Swept { chat_rows, more: chat_rows > 0, ..Swept::default() })
        })
        .await
    }

    /// A batch of what is left of the longest-removed chat that no other replica is at: first its
    /// members, since there are queries that pass by their rows, then its messages. Its row stays
    /// for now: a replica that missed the removal finds out by it.
    async fn sweep_removed_chat(&self) -> Result<u64> {
        let mut work = self.begin().await?;
        let Some(chat_id) = lock_removed_chat(&mut work).await? else { return Ok(0) };
        let members: Vec<UserId> = within!(work, |db| {
            sqlx::query_scalar(
                "DELETE FROM members WHERE chat_id = $1
                 AND user_id IN (SELECT user_id FROM members WHERE chat_id = $1 ORDER BY user_id LIMIT $2)
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
                 AND id IN (SELECT id FROM messages WHERE chat_id = $1 ORDER BY id LIMIT $2) RETURNING id",
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

    /// Removes a batch of rows of chats that were removed before `now` and of which nothing else is
    /// left.
    async fn forget_removed(&self, now: Timestamp) -> Result<u64> {
        let gone: Vec<ChatId> = on!(self.writer(), |db| {
            sqlx::query_scalar(
            "DELETE FROM chats WHERE id IN (
                 SELECT c.id FROM chats c WHERE c.removed_at_ms <= $1
                   AND NOT EXISTS (SELECT 1 FROM members m WHERE m.chat_id = c.id)
                   AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.chat_id = c.id) ORDER BY c.removed_at_ms LIMIT $2
             ) RETURNING id"
        )
        .bind(now)
        .bind(JOB_BATCH)
        .fetch_all(db)
        })?;
        Ok(gone.len() as u64)
    }

    /// Forgets a batch of those who left long ago, and notes in their chats that clients further
    /// behind must start anew.
    async fn forget_departed(&self, now: Timestamp) -> Result<u64> {
        let mut work = self.begin().await?;
        let old: Vec<(ChatId, Rev)> = within!(work, |db| {
            sqlx::query_as(
            "SELECT chat_id, left_rev FROM members WHERE left_at_ms <= $1 ORDER BY left_at_ms, chat_id, left_rev LIMIT $2"
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
            // The chat before its members, as everywhere: whoever joins again holds the one and
            // wants the other.
            within!(work, |db| sqlx::query(
                "UPDATE chats SET forgotten_rev = $2 WHERE id = $1 AND forgotten_rev < $2"
            )
            .bind(chat_id)
            .bind(rev)
            .execute(db)
            .map_ok_drop())?;
            let gone: Vec<UserId> = within!(work, |db| {
                sqlx::query_scalar(
                "DELETE FROM members WHERE chat_id = $1 AND left_at_ms <= $2 AND left_rev <= $3 RETURNING user_id"
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

/// Locks the longest-removed chat that still has members or messages. Without the lock, two
/// replicas could clear one chat at once: one of them would find its batch gone, take the chat for
/// empty, and leave the rest for good.
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
