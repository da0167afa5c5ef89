//! The chats that changed since a time: so a hub finds what the bus lost without reading every
//! chat.
//!
//! With each change of a chat, the database stores the slot of its clock in which the change was
//! written (see the migration `log_epoch`). A change becomes visible only when it is committed, so
//! a resync begins [`CHANGE_SLOTS_MARGIN`] before the slot of the last one.

use super::{Store, on, on_ids, timed};
use crate::model::{ChatId, Result, Rev, Timestamp, UserId};

/// Length of a slot, as the triggers compute it.
#[cfg(test)]
const SLOT_SECONDS: u64 = 10;
/// Slots before the last resync that the next one reads again. A change that was written in them
/// may have been committed after the last resync. A slot is 10 s, longer than any unit of work
/// takes.
pub const CHANGE_SLOTS_MARGIN: i64 = 1;
/// Changes of a chat among which a resync searches for joins. A chat with more changes between two
/// resyncs is left to the full resync.
const JOIN_REVS_MAX: i64 = 10_000;

/// A chat that changed, as a resync compares it with its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ChangedChat {
    /// The slot of the database's clock in which it changed last.
    pub changed_slot: i64,
    /// The chat that changed.
    pub id: ChatId,
    /// The chat's revision now.
    pub rev: Rev,
    /// Whether the chat was removed for all its members.
    pub removed: bool,
}

impl Store {
    /// The present slot of the database's clock.
    pub async fn change_slot(&self) -> Result<i64> {
        let sql = if self.is_embedded() {
            "SELECT unixepoch() / 10"
        } else {
            "SELECT FLOOR(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) / 10)::BIGINT"
        };
        timed("change_slot", || async {
            on!(self.reader(), |db| sqlx::query_scalar(sql).fetch_one(db))
        })
        .await
    }

    /// Up to `max` chats that changed in this slot or later, in the order of slot and id, after
    /// the chat `behind` of this slot.
    pub async fn chats_changed(
        &self,
        slot: i64,
        behind: ChatId,
        max: i64,
    ) -> Result<Vec<ChangedChat>> {
        timed("chats_changed", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT changed_slot, id, rev, removed_at_ms IS NOT NULL AS removed FROM chats \
                 WHERE (changed_slot, id) > ($1, $2) ORDER BY changed_slot, id LIMIT $3"
            )
            .bind(slot)
            .bind(behind)
            .bind(max)
            .fetch_all(db))
        })
        .await
    }

    /// The members who joined one of these chats at `since` or later and have not left.
    pub async fn joined(
        &self,
        chats: &[ChatId],
        since: Timestamp,
    ) -> Result<Vec<(ChatId, UserId)>> {
        timed("joined", || async {
            on_ids!(
                self.reader(),
                query_as,
                "SELECT m.chat_id, m.user_id FROM chats c JOIN members m ON m.chat_id = c.id \
                 AND m.rev > c.rev - $2 WHERE c.id = ANY($1) AND m.joined_at_ms >= $3 \
                 AND m.left_rev IS NULL",
                chats,
                |query, db| query.bind(JOIN_REVS_MAX).bind(since).fetch_all(db)
            )
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_and_resync_use_the_same_slot_length() {
        let sources = [
            include_str!("../../migrations/postgres/0003_log_epoch.sql"),
            include_str!("../../migrations/sqlite/0003_log_epoch.sql"),
            include_str!("changed.rs"),
        ];
        for source in sources {
            assert!(source.contains(&format!(") / {SLOT_SECONDS}")));
        }
    }
}
