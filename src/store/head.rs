//! The head of a chat's log: its row, whose lock orders all changes of the chat.

use sqlx::FromRow;

use super::{Work, within};
use crate::model::{ChatId, ChatKind, Code, Error, MessageId, Result, Rev, Role, UserId};

/// The locked head of a chat's log, with the revision that this unit of work will produce.
#[derive(Debug)]
pub(super) struct Head {
    pub kind: ChatKind,
    pub rev: Rev,
    pub last_message_id: MessageId,
    pub member_count: i64,
    pub role: Role,
}

impl Head {
    /// Takes the chat's lock and its next revision for a change by `user_id`. Strangers and former
    /// members are refused without the lock, so that nobody can hold up a chat in which they are
    /// not.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn lock(work: &mut Work, chat_id: ChatId, user_id: UserId) -> Result<Self> {
        #[derive(FromRow)]
        struct Row {
            #[sqlx(try_from = "String")]
            kind: ChatKind,
            rev: Rev,
            last_message_id: MessageId,
            member_count: i64,
        }
        let row: Option<Row> = within!(work, |db| {
            sqlx::query_as(
                "UPDATE chats SET rev = rev + 1 WHERE id = $1 AND removed_at_ms IS NULL AND EXISTS (
                     SELECT 1 FROM members m WHERE m.chat_id = $1 AND m.user_id = $2 AND m.left_rev IS NULL
                 ) RETURNING kind, rev, last_message_id, member_count",
            )
            .bind(chat_id)
            .bind(user_id)
            .fetch_optional(db)
        })?;
        let not_found = || Error::new(Code::ChatNotFound);
        let row = row.ok_or_else(not_found)?;
        // Asked after the lock is held: whoever was removed before this change is seen as removed.
        let role = role_of(work, chat_id, user_id).await?.ok_or_else(not_found)?;
        Ok(Self {
            kind: row.kind,
            rev: row.rev,
            last_message_id: row.last_message_id,
            member_count: row.member_count,
            role,
        })
    }
}

/// The role of a member, if they are one.
pub(super) async fn role_of(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
) -> Result<Option<Role>> {
    let role: Option<String> = within!(work, |db| sqlx::query_scalar(
        "SELECT role FROM members WHERE chat_id = $1 AND user_id = $2 AND left_rev IS NULL"
    )
    .bind(chat_id)
    .bind(user_id)
    .fetch_optional(db))?;
    role.map(|word| word.try_into().map_err(|bad: String| Error::internal(bad))).transpose()
}
