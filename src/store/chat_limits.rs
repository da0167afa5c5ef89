//! Limits on the chats of a user, and who may add a user to a chat.
//!
//! Removed chats don't count, but the rows of their members may still exist. Counting only the
//! chats that exist costs more, so it is done only for users who seem to be at a limit.

use super::{Work, within, within_ids};
use crate::model::limits::CHATS_BY_OTHERS_MAX;
use crate::model::{Code, Result, UserId};

/// Refuses another chat for a user who has `chats_max` by their own act. The caller holds the
/// user's lock.
pub(super) async fn check_chat_limit(
    work: &mut Work,
    user_id: UserId,
    chats_max: i64,
) -> Result<()> {
    let is_full: bool = within!(work, |db| {
        sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM members
                     WHERE user_id = $1 AND left_rev IS NULL AND NOT by_others) >= $2
                AND (SELECT COUNT(*) FROM members m
                     JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                     WHERE m.user_id = $1 AND m.left_rev IS NULL AND NOT m.by_others) >= $2",
        )
        .bind(user_id)
        .bind(chats_max)
        .fetch_one(db)
    })?;

    if is_full { Err(Code::ChatLimit.into()) } else { Ok(()) }
}

/// For each user of a list: whether the user refuses the actor `$2` as a stranger, and whether the
/// user has reached the maximum of chats by others (`$3`) or of all chats (`$4`).
const BROUGHT_IN: &str = "SELECT u.refuse_strangers AND NOT EXISTS (
        SELECT 1 FROM members a JOIN members b ON b.chat_id = a.chat_id
        JOIN chats c ON c.id = a.chat_id AND c.removed_at_ms IS NULL
        WHERE a.user_id = $2 AND a.left_rev IS NULL AND b.user_id = u.id AND b.left_rev IS NULL),
    ((SELECT COUNT(*) FROM members m
      WHERE m.user_id = u.id AND m.left_rev IS NULL AND m.by_others) >= $3
     AND (SELECT COUNT(*) FROM members m
          JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
          WHERE m.user_id = u.id AND m.left_rev IS NULL AND m.by_others) >= $3)
    OR ((SELECT COUNT(*) FROM members m WHERE m.user_id = u.id AND m.left_rev IS NULL) >= $4
     AND (SELECT COUNT(*) FROM members m
          JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
          WHERE m.user_id = u.id AND m.left_rev IS NULL) >= $4)
    FROM users u WHERE u.id = ANY($1)";

/// Refuses to add users to a chat by the act of `actor` if one of them refuses strangers and shares
/// no chat with the actor, or if one of them has too many chats: by others, or more than
/// `altogether_max` in all. A refused stranger does not learn about the number of chats. The caller
/// holds the users' locks.
pub(super) async fn check_can_be_added(
    work: &mut Work,
    actor: UserId,
    users: &[UserId],
    altogether_max: Option<i64>,
) -> Result<()> {
    let altogether_max = altogether_max.unwrap_or(i64::MAX);
    let users: Vec<(bool, bool)> =
        within_ids!(work, query_as, BROUGHT_IN, users, |query, db| query
            .bind(actor)
            .bind(CHATS_BY_OTHERS_MAX)
            .bind(altogether_max)
            .fetch_all(db))?;

    if users.iter().any(|(refuses, _)| *refuses) {
        return Err(Code::UserUnreachable.into());
    }
    if users.iter().any(|(_, is_full)| *is_full) { Err(Code::ChatLimit.into()) } else { Ok(()) }
}
