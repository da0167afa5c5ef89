//! Sync: what a client missed while it was away, as a snapshot and pages of changes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::budget::Budgets;
use crate::model::faults::{self, Mutant, Point};
use crate::model::limits::SYNC_CHANGES_MAX;
use crate::model::{ChatId, Epoch, Error, Result, Rev, UserId};
use crate::store::{Since, Store};

pub use crate::store::{Changes, ChatToSync};

/// The chats of a user, read after the connection began to follow them.
pub struct FollowedChats {
    /// All chats that the connection follows now. The user may have left some before the snapshot.
    pub followed: HashSet<ChatId>,
    /// The snapshot: the user's chats.
    pub chats: Vec<ChatToSync>,
}

/// Which changes of a chat to read next.
#[derive(Clone, Copy, Debug)]
pub struct NextChanges {
    /// The revision that the client named.
    pub known: Rev,
    /// The revision up to which changes were delivered since; at first [`NextChanges::known`].
    pub delivered: Rev,
    /// Whether the client gets the number of members instead of each change of another member.
    pub counted: bool,
    /// Number of changes to read.
    pub items_max: i64,
}

/// The service for `sync`.
pub struct Syncs {
    pub(super) store: Store,
    pub(super) budgets: Arc<Budgets>,
    /// Permits to read for a sync.
    pub(super) permits: Semaphore,
}

impl Syncs {
    /// The epoch of the log that this replica serves.
    pub fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// Calls `follow` with all of the user's chats and only then reads them. So no event falls
    /// between the snapshot and the live stream: an event after the snapshot finds the connection
    /// following.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn snapshot(
        &self,
        user_id: UserId,
        follow: impl Fn(&[(ChatId, Rev)]) + Send,
    ) -> Result<FollowedChats> {
        // The user's own permit first: while a user waits for it, others can use the shared ones.
        let _frame = self.budgets.frame_permit(user_id).await?;
        let _permit = self.permits.acquire().await.map_err(Error::internal)?;

        let mut followed = HashSet::new();
        let mut heads = self.store.chat_heads(user_id).await?;
        loop {
            if faults::on(Mutant::SubscribeAfterFetch) {
                let chats = self.store.chats_to_sync(user_id).await?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                heads = self.store.chat_heads(user_id).await?;
                follow(&heads);
                return Ok(FollowedChats {
                    followed: heads.iter().map(|(chat_id, _)| *chat_id).collect(),
                    chats,
                });
            }
            follow(&heads);
            faults::at(Point::Followed).await;
            followed.extend(heads.iter().map(|(chat_id, _)| *chat_id));

            let chats = self.store.chats_to_sync(user_id).await?;
            // Chats that the user joined in between are followed first and read again.
            let new =
                chats.iter().map(|found| &found.chat).filter(|chat| !followed.contains(&chat.id));
            heads = new.map(|chat| (chat.id, chat.rev)).collect();
            if heads.is_empty() {
                return Ok(FollowedChats { followed, chats });
            }
        }
    }

    /// The next changes of a chat. `None` if the client must reload the chat: before the first page
    /// because there are more than [`SYNC_CHANGES_MAX`], later because some are no longer kept, or
    /// because the user left the chat after the snapshot and may not see what happened since.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn changes(
        &self,
        user_id: UserId,
        found: &ChatToSync,
        next: NextChanges,
    ) -> Result<Option<Changes>> {
        let _frame = self.budgets.frame_permit(user_id).await?;
        let _permit = self.permits.acquire().await.map_err(Error::internal)?;

        let chat_id = found.chat.id;
        let only_member = next.counted.then_some(user_id);
        let since = Since { known: next.known, told: next.delivered, only_member };
        let read = self.store.changes(chat_id, Some(user_id), since, next.items_max).await?;
        let is_whole = |changes: &Changes| next.counted || !changes.forgotten;
        let Some(changes) = read.filter(is_whole) else { return Ok(None) };

        let is_first = next.delivered == next.known;
        let too_many = is_first
            && !changes.complete
            && self
                .store
                .has_more_changes(chat_id, next.known, !next.counted, SYNC_CHANGES_MAX)
                .await?;
        let is_same_membership = changes.joined_rev == Some(found.joined_rev);
        Ok(Some(changes).filter(|_| !too_many && is_same_membership))
    }
}
