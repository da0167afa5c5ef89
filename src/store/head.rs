//! The head of a chat's log: the chat's row, whose row lock orders all changes of the chat.

use sqlx::FromRow;

use super::{Work, within};
use crate::model::{ChatId, ChatKind, Code, Error, MessageId, Result, Rev, Role, UserId};

/// The locked head of a chat's log. `rev` is the revision that this unit of work produces.
#[derive(Debug)]
pub(super) struct Head {
    pub kind: ChatKind,
    pub rev: Rev,
    pub last_message_id: MessageId,
    pub member_count: i64,
    pub role: Role,
}

impl Head {
    /// Locks the chat's row and takes its next revision, for a change by `user_id`. A user who is
    /// not a member is refused without the lock, so such a user cannot block a chat.
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
                "UPDATE chats SET rev = rev + 1
                 WHERE id = $1 AND removed_at_ms IS NULL AND EXISTS (
                     SELECT 1 FROM members m
                     WHERE m.chat_id = $1 AND m.user_id = $2 AND m.left_rev IS NULL
                 ) RETURNING kind, rev, last_message_id, member_count",
            )
            .bind(chat_id)
            .bind(user_id)
            .fetch_optional(db)
        })?;

        let not_found = || Error::new(Code::ChatNotFound);
        let row = row.ok_or_else(not_found)?;
        // Read after the lock is taken, so a removal that was committed before is seen.
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

/// The role of a member; `None` if the user is not a member.
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
