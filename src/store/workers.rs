//! The leases of background work, and the positions of durable consumers.

use uuid::Uuid;

use super::{MapOkDrop, Store, on, timed};
use crate::model::limits::CLOCK_JUMP_MAX;
use crate::model::{ChatId, Result, Rev, Timestamp};

/// A chat whose changes a consumer has not applied completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ConsumerBacklog {
    /// The slot of the database's clock in which the chat changed last.
    pub changed_slot: i64,
    /// The chat.
    pub chat_id: ChatId,
    /// The chat's revision now.
    pub rev: Rev,
    /// The revision up to which the consumer has applied changes.
    pub applied: Rev,
}

impl Store {
    /// Takes the lease of `worker` until `expires_at`. Returns whether `holder` has it now. It is
    /// refused while another holder's lease is valid at `now`, and if the work was finished after
    /// `not_after`. A time in the row that is too far in the future does not count: the clock that
    /// wrote it was wrong.
    pub async fn take_worker_lease(
        &self,
        worker: &str,
        holder: Uuid,
        (now, expires_at): (Timestamp, Timestamp),
        not_after: Timestamp,
    ) -> Result<bool> {
        timed("take_worker_lease", || async {
            let taken: Option<String> = on!(self.writer(), |db| sqlx::query_scalar(
                "INSERT INTO worker_leases (worker, holder, expires_at_ms) VALUES ($1, $2, $3)
                 ON CONFLICT (worker) DO UPDATE
                 SET holder = excluded.holder, expires_at_ms = excluded.expires_at_ms
                 WHERE (worker_leases.expires_at_ms NOT BETWEEN $4 + 1 AND $6
                        OR worker_leases.holder = $2)
                   AND worker_leases.finished_at_ms NOT BETWEEN $5 + 1 AND $6
                 RETURNING worker"
            )
            .bind(worker)
            .bind(holder)
            .bind(expires_at)
            .bind(now)
            .bind(not_after)
            .bind(expires_at.plus(CLOCK_JUMP_MAX))
            .fetch_optional(db))?;
            Ok(taken.is_some())
        })
        .await
    }

    /// Extends the lease of `worker`. Returns whether `holder` still has it.
    pub async fn renew_worker_lease(
        &self,
        worker: &str,
        holder: Uuid,
        (now, expires_at): (Timestamp, Timestamp),
    ) -> Result<bool> {
        timed("renew_worker_lease", || async {
            let renewed: Option<String> = on!(self.writer(), |db| sqlx::query_scalar(
                "UPDATE worker_leases SET expires_at_ms = $3
                 WHERE worker = $1 AND holder = $2 AND expires_at_ms > $4 RETURNING worker"
            )
            .bind(worker)
            .bind(holder)
            .bind(expires_at)
            .bind(now)
            .fetch_optional(db))?;
            Ok(renewed.is_some())
        })
        .await
    }

    /// Releases the lease of `worker`, if `holder` has it. `finished_at`: the work was done to its
    /// end at that time.
    pub async fn release_worker_lease(
        &self,
        worker: &str,
        holder: Uuid,
        finished_at: Option<Timestamp>,
    ) -> Result<()> {
        timed("release_worker_lease", || async {
            on!(self.writer(), |db| sqlx::query(
                "UPDATE worker_leases SET expires_at_ms = 0,
                 finished_at_ms = COALESCE($3, finished_at_ms) WHERE worker = $1 AND holder = $2"
            )
            .bind(worker)
            .bind(holder)
            .bind(finished_at)
            .execute(db)
            .map_ok_drop())
        })
        .await
    }

    /// Up to `max` chats that changed in `slot` or later, in the order of slot and id, after the
    /// chat `behind` of this slot, each with the position of `consumer`.
    pub async fn consumer_backlog(
        &self,
        consumer: &str,
        (slot, behind): (i64, ChatId),
        max: i64,
    ) -> Result<Vec<ConsumerBacklog>> {
        timed("consumer_backlog", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT c.changed_slot, c.id AS chat_id, c.rev, COALESCE(p.rev, 0) AS applied
                 FROM chats c
                 LEFT JOIN consumer_positions p ON p.consumer = $1 AND p.chat_id = c.id
                 WHERE (c.changed_slot, c.id) > ($2, $3) ORDER BY c.changed_slot, c.id LIMIT $4"
            )
            .bind(consumer)
            .bind(slot)
            .bind(behind)
            .bind(max)
            .fetch_all(db))
        })
        .await
    }

    /// Stores that `consumer` has applied the changes of a chat up to `rev`. A position never
    /// moves back.
    pub async fn advance_consumer(&self, consumer: &str, chat_id: ChatId, rev: Rev) -> Result<()> {
        timed("advance_consumer", || async {
            on!(self.writer(), |db| sqlx::query(
                "INSERT INTO consumer_positions (consumer, chat_id, rev) VALUES ($1, $2, $3)
                 ON CONFLICT (consumer, chat_id) DO UPDATE SET rev = excluded.rev
                 WHERE consumer_positions.rev < excluded.rev"
            )
            .bind(consumer)
            .bind(chat_id)
            .bind(rev)
            .execute(db)
            .map_ok_drop())
        })
        .await
    }
}
