//! Algorithms that are wrong on purpose, for the mutants of [`faults`](crate::model::faults) that
//! need more than a line. No release contains this module.

use std::time::Duration;

use super::sync::FollowedChats;
use crate::model::{ChatId, Result, Rev, UserId};
use crate::store::Store;

/// [`Mutant::SubscribeAfterFetch`](crate::model::faults::Mutant): reads the chats, and follows them
/// only after that. Events in between are lost.
pub async fn read_then_follow(
    store: &Store,
    user_id: UserId,
    follow: impl Fn(&[(ChatId, Rev)]) + Send,
) -> Result<FollowedChats> {
    let chats = store.chats_to_sync(user_id).await?;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let heads = store.chat_heads(user_id).await?;
    follow(&heads);
    Ok(FollowedChats { followed: heads.iter().map(|(chat_id, _)| *chat_id).collect(), chats })
}
