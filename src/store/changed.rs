//! What changed in any chat since a moment: how a hub makes up for what the bus lost without
//! reading every chat.
//!
//! The database notes with each change of a chat in which slot of its clock that was (see the
//! migration `log_epoch`). A change is noted when it is written and seen when it is committed, so a
//! look begins [`CHANGE_SLOTS_MARGIN`] before the last one did.

use super::{Store, on, on_ids, timed};
use crate::model::{ChatId, Result, Rev, Timestamp, UserId};

/// Seconds of a slot, as the triggers have it.
#[cfg(test)]
const SLOT_SECONDS: u64 = 10;
/// Slots before the last look in which a change may have been written that was committed after it:
/// 10 s at least, more than any unit of work takes.
pub const CHANGE_SLOTS_MARGIN: i64 = 1;
/// Changes of a chat within which a join is looked for. A chat with more of them between two looks
/// is left to the slow comparison.
const JOIN_REVS_MAX: i64 = 10_000;

/// A chat that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ChangedChat {
    /// In which slot of the database's clock it changed last.
    pub changed_slot: i64,
    /// Which.
    pub id: ChatId,
    /// Its revision.
    pub rev: Rev,
    /// Whether it was removed for all.
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

    /// Up to `max` chats behind this slot and chat that changed in it or later, in the order of
    /// slot and id.
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

    /// Who joined one of these chats since then and is still a member.
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
                 AND m.rev > c.rev - $2 WHERE c.id = ANY($1) AND m.joined_at_ms >= $3 AND m.left_rev IS NULL",
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
    fn the_triggers_and_the_look_agree_on_the_length_of_a_slot() {
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
