//! Row locks on accounts. A unit of work locks users before chats, so that two units of work never
//! wait for each other.

use super::{Work, within, within_ids};
use crate::model::{Result, UserId};

/// Locks these accounts in the order of their ids, so that counts per user stay exact. Every unit
/// of work locks users before chats. Returns the accounts that exist and are not removed.
pub(super) async fn lock_users(work: &mut Work, ids: &[UserId]) -> Result<Vec<UserId>> {
    let mut sorted: Vec<UserId> = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();

    within_ids!(
        work,
        query_scalar,
        "SELECT id FROM users WHERE id = ANY($1) AND removed_at_ms IS NULL \
         ORDER BY id FOR NO KEY UPDATE",
        sorted,
        |query, db| query.fetch_all(db)
    )
}

/// Locks an account. Returns whether it exists and its password hash is still `hash`, against which
/// the caller verified the password: a login or change that was verified before the password
/// changed must not be committed after it.
pub(super) async fn lock_user_with_password(
    work: &mut Work,
    id: UserId,
    hash: &str,
) -> Result<bool> {
    if lock_users(work, &[id]).await?.is_empty() {
        return Ok(false);
    }

    let present: String =
        within!(work, |db| sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1")
            .bind(id)
            .fetch_one(db))?;
    Ok(present == hash)
}
