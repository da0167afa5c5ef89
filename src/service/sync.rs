//! Sync: the changes that a client missed, as a snapshot and pages of changes.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::budget::Budgets;
#[cfg(feature = "faults")]
use super::mutants::read_then_follow;
use crate::model::faults::{self, Point, mutant};
use crate::model::limits::SYNC_CHANGES_MAX;
use crate::model::{ChatId, Epoch, Error, Result, Rev, UserId};
use crate::store::{Since, Store};

pub use crate::store::{Changes, ChatToSync};

/// The chats of a user, read after the connection began to follow them.
pub struct FollowedChats {
    /// All chats that the connection now follows. The user may have left some before the snapshot.
    pub followed: HashSet<ChatId>,
    /// The snapshot: the user's chats.
    pub chats: Vec<ChatToSync>,
}

/// Which changes of a chat to read next.
#[derive(Clone, Copy, Debug)]
pub struct NextChanges {
    /// The last revision that the client has.
    pub known: Rev,
    /// The last revision that this sync delivered; at first [`NextChanges::known`].
    pub delivered: Rev,
    /// Whether the client gets the number of members instead of the changes of other members.
    pub counted: bool,
    /// Number of changes to read.
    pub items_max: i64,
}

/// The service for `sync`.
pub struct Syncs {
    pub(super) store: Store,
    pub(super) budgets: Arc<Budgets>,
    /// Permits to read a snapshot or a page of changes.
    pub(super) permits: Semaphore,
}

impl Syncs {
    /// The epoch of the log that this replica serves.
    pub fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// Calls `follow` with all of the user's chats, and reads them only after that. So no event is
    /// lost between the snapshot and the live stream: the connection already follows the chat of
    /// every event after the snapshot.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn snapshot(
        &self,
        user_id: UserId,
        follow: impl Fn(&[(ChatId, Rev)]) + Send,
    ) -> Result<FollowedChats> {
        // The user's permit first: a user that waits for it must not hold a shared permit.
        let _frame = self.budgets.frame_permit(user_id).await?;
        let _permit = self.permits.acquire().await.map_err(Error::internal)?;

        mutant!(SubscribeAfterFetch => return read_then_follow(&self.store, user_id, follow).await);
        let mut followed = HashSet::new();
        let mut heads = self.store.chat_heads(user_id).await?;
        loop {
            follow(&heads);
            faults::at(Point::Followed).await;
            followed.extend(heads.iter().map(|(chat_id, _)| *chat_id));

            let chats = self.store.chats_to_sync(user_id).await?;
            // The user joined further chats in between: follow these too, then read again.
            let new =
                chats.iter().map(|found| &found.chat).filter(|chat| !followed.contains(&chat.id));
            heads = new.map(|chat| (chat.id, chat.rev)).collect();
            if heads.is_empty() {
                return Ok(FollowedChats { followed, chats });
            }
        }
    }

    /// The next changes of a chat. `None` if the client must reload the chat: there are more than
    /// [`SYNC_CHANGES_MAX`] changes at the first page, some changes are no longer kept, or the user
    /// left the chat after the snapshot and must not see later changes.
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
        let since = Since { known: next.known, delivered: next.delivered, only_member };
        let read = self.store.changes(chat_id, Some(user_id), since, next.items_max).await?;
        let has_no_gap = |changes: &Changes| next.counted || !changes.forgotten;
        let Some(changes) = read.filter(has_no_gap) else { return Ok(None) };

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
