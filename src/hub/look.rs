//! Looks at the store for what the bus lost: at what changed since the last look, so that a chat in which nothing happens
//! costs nothing; and slowly at everything, so that nothing depends on a look having been complete.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::Hub;
use super::feed::Feed;
use super::heal::CHECK_BATCH;
use crate::metrics;
use crate::model::limits::{BELT_STEPS, JOIN_LOOK_MARGIN};
use crate::model::{ChatId, Result, Timestamp, UserId};
use crate::store::{CHANGE_SLOTS_MARGIN, ChangedChat};

/// How far the store was looked at.
#[derive(Default)]
pub(super) struct Looked {
    /// The last complete look: the database's slot and this process's time when it began. `None`: there was none, or the
    /// log is another one since.
    last: Mutex<Option<(i64, Timestamp)>>,
    /// The next step of the slow comparison.
    step: Mutex<usize>,
}

impl Looked {
    /// Has the next look compare everything.
    pub fn forget(&self) {
        *self.last.lock() = None;
    }
}

impl Hub {
    /// Compares what changed since the last look with the store; everything, if there was none.
    ///
    /// # Errors
    /// `unavailable` if the store did not answer for all of it: then the next look begins where this one did.
    pub(super) async fn look_for_changes(self: &Arc<Self>) -> Result<()> {
        let (generation, last) = (self.generation(), *self.looked.last.lock());
        // Both from before the first row is read.
        let (slot, now) = (self.store.change_slot().await?, self.clock.now());
        match last {
            Some((last, at)) if last <= slot => self.look_since(last, at).await?,
            // The database's clock stepped back: what changed since may bear an earlier slot than the last look.
            Some(_) | None => self.check_everything().await?,
        }
        if self.generation() == generation {
            *self.looked.last.lock() = Some((slot, now));
        }
        Ok(())
    }

    async fn look_since(self: &Arc<Self>, slot: i64, at: Timestamp) -> Result<()> {
        let joined_since = at.minus(JOIN_LOOK_MARGIN);
        let (mut slot, mut behind) = (slot - CHANGE_SLOTS_MARGIN, ChatId(Uuid::nil()));
        loop {
            let generation = self.generation();
            #[expect(clippy::cast_possible_wrap, reason = "a thousand")]
            let page = self.store.chats_changed(slot, behind, CHECK_BATCH as i64).await?;
            let Some(last) = page.last() else { return Ok(()) };
            (slot, behind) = (last.changed_slot, last.id);
            metrics::hub_chats_resynced(page.len());
            self.compare_changed(&page, generation);
            let ids: Vec<ChatId> = page.iter().filter(|chat| !chat.removed).map(|chat| chat.id).collect();
            for (chat_id, user_id) in self.store.joined(&ids, joined_since).await? {
                if self.misses(chat_id, user_id) {
                    self.take_in(chat_id, user_id).await?;
                }
            }
            if page.len() < CHECK_BATCH {
                return Ok(());
            }
        }
    }

    fn compare_changed(self: &Arc<Self>, page: &[ChangedChat], generation: u64) {
        let mut ahead = Vec::new();
        for chat in page {
            let delivered = self.feeds(chat.id).get(&chat.id).map(Feed::rev);
            match delivered {
                _ if self.generation() != generation => return,
                Some(_) if chat.removed => self.end_chat(chat.id, generation),
                Some(delivered) if delivered < chat.rev => self.heal_later(chat.id, Some(chat.rev), "check"),
                // Mostly, the chat went on since its row was read.
                Some(delivered) if delivered > chat.rev => ahead.push(chat.id),
                Some(_) | None => {}
            }
        }
        self.doubt_log(ahead);
    }

    /// Whether a connection of this user's lacks a chat that the user joined.
    fn misses(&self, chat_id: ChatId, user_id: UserId) -> bool {
        let streaming = self.registry.streaming(user_id);
        let feeds = self.feeds(chat_id);
        let feed = feeds.get(&chat_id);
        streaming.iter().any(|connection| feed.is_none_or(|feed| !feed.is_followed_by(connection)))
    }

    /// Compares all followed chats, and the lists of all connected users, with the store.
    async fn check_everything(self: &Arc<Self>) -> Result<()> {
        for step in 0..BELT_STEPS {
            self.check_part(step).await?;
        }
        Ok(())
    }

    /// The next step of the slow comparison with the store, which comes round every 15 minutes.
    pub(super) async fn belt(self: &Arc<Self>) {
        let step = {
            let mut step = self.looked.step.lock();
            *step = (*step + 1) % BELT_STEPS;
            *step
        };
        metrics::hub_chats(self.shards.iter().map(|shard| shard.lock().len()).sum());
        if let Err(error) = self.check_part(step).await {
            tracing::warn!(%error, "could not compare a part of the followed chats with the store");
        }
    }

    /// Compares one part of the chats and of the connections.
    async fn check_part(self: &Arc<Self>, step: usize) -> Result<()> {
        let shards = self.shards.iter().skip(step).step_by(BELT_STEPS);
        let chats: HashSet<ChatId> = shards.flat_map(|it| it.lock().keys().copied().collect::<Vec<_>>()).collect();
        let chats: Vec<ChatId> = chats.into_iter().collect();
        for batch in chats.chunks(CHECK_BATCH) {
            self.check_chats(batch).await?;
        }
        let in_part = |id: u64| usize::try_from(id).unwrap_or(0) % BELT_STEPS == step;
        let connections: Vec<_> = self.registry.all().into_iter().filter(|it| in_part(it.id)).collect();
        for batch in connections.chunks(CHECK_BATCH) {
            self.check_lists(batch).await?;
        }
        Ok(())
    }
}
