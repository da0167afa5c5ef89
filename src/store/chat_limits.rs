//! How many chats a user may have, by whose act, and who may bring a user into one.

use super::{Work, within};
use crate::model::limits::CHATS_BY_OTHERS_MAX;
use crate::model::{Code, Result, UserId};

/// Refuses one chat too many by the user's own act. The caller holds the user's lock.
pub(super) async fn below_chat_limit(work: &mut Work, user_id: UserId, chats_max: i64) -> Result<()> {
    let chats: i64 = within!(work, |db| sqlx::query_scalar(
        "SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL AND NOT by_others"
    )
    .bind(user_id)
    .fetch_one(db))?;
    if chats >= chats_max { Err(Code::ChatLimit.into()) } else { Ok(()) }
}

/// Refuses to bring a user into a chat by the act of `actor`, if they are strangers to each other and the user refuses
/// such, or if the user has too many chats already: by others, or altogether. Strangers learn nothing of the latter. The
/// caller holds the user's lock.
pub(super) async fn may_be_brought_in(
    work: &mut Work,
    actor: UserId,
    user_id: UserId,
    altogether_max: Option<i64>,
) -> Result<()> {
    let (refused, by_others, altogether): (bool, i64, i64) = within!(work, |db| sqlx::query_as(
        "SELECT u.refuse_strangers AND NOT EXISTS (
                 SELECT 1 FROM members a JOIN members b ON b.chat_id = a.chat_id
                 WHERE a.user_id = $2 AND a.left_rev IS NULL AND b.user_id = $1 AND b.left_rev IS NULL),
             (SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL AND by_others),
             (SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL)
         FROM users u WHERE u.id = $1"
    )
    .bind(user_id)
    .bind(actor)
    .fetch_one(db))?;
    if refused {
        return Err(Code::UserUnreachable.into());
    }
    let is_full = by_others >= CHATS_BY_OTHERS_MAX || altogether_max.is_some_and(|max| altogether >= max);
    if is_full { Err(Code::ChatLimit.into()) } else { Ok(()) }
}
