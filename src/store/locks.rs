//! Locks on accounts. A unit of work locks users before chats, so that two of them never wait for
//! each other.

use super::{Work, within, within_ids};
use crate::model::{Result, UserId};

/// Locks these accounts in the order of their ids, so that what is counted per user stays exact.
/// Users are locked before chats, everywhere. Returns those that exist and are not removed.
pub(super) async fn lock_users(work: &mut Work, ids: &[UserId]) -> Result<Vec<UserId>> {
    let mut sorted: Vec<UserId> = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();

    within_ids!(
        work,
        query_scalar,
        "SELECT id FROM users WHERE id = ANY($1) AND removed_at_ms IS NULL ORDER BY id FOR NO KEY UPDATE",
        sorted,
        |query, db| query.fetch_all(db)
    )
}

/// Locks an account. Whether it is there, and its password is still the one that was verified
/// against `hash`: a login or a change that was verified before the password changed must not be
/// done after.
pub(super) async fn lock_user_with_password(
    work: &mut Work,
    id: UserId,
    hash: &str,
) -> Result<bool> {
    if lock_users(work, &[id]).await?.is_empty() {
        return Ok(false);
    }
    let now: String =
        within!(work, |db| sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1")
            .bind(id)
            .fetch_one(db))?;
    Ok(now == hash)
}
