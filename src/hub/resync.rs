//! The resync: compares the followed chats with the store, in case the bus lost an event.
//!
//! The ordinary resync reads which chats changed since the last one, so an idle chat costs nothing.
//! The full resync compares all followed chats, a step at a time: it finds a change that the
//! ordinary resync missed.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::heal::CHECK_BATCH;
use super::subscription::ChatSubscription;
use super::{Connection, Hub};
use crate::metrics;
use crate::model::limits::{FULL_RESYNC_STEPS, JOIN_RESYNC_MARGIN};
use crate::model::{ChatId, Result, Timestamp, Topic, UserId};
use crate::store::{CHANGE_SLOTS_MARGIN, ChangedChat};

/// The progress of the resyncs.
#[derive(Default)]
pub(super) struct ResyncProgress {
    /// The database's change slot and this process's time when the last complete resync began.
    /// `None` if there was none in this epoch.
    last: Mutex<Option<(i64, Timestamp)>>,
    /// The last step of the full resync.
    step: Mutex<usize>,
}

impl ResyncProgress {
    /// Makes the next resync compare all followed chats.
    pub fn reset(&self) {
        *self.last.lock() = None;
    }

    /// Advances the full resync by a step, and returns the step.
    fn next_step(&self) -> usize {
        let mut step = self.step.lock();
        *step = (*step + 1) % FULL_RESYNC_STEPS;
        *step
    }
}

impl Hub {
    /// Starts a task that compares these topics with the store.
    pub(super) fn resync_topics(self: &Arc<Self>, topics: Vec<Topic>) {
        for topic in &topics {
            if let Topic::Presence(user) = topic {
                self.presence.resync_soon(*user);
            }
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            if let Err(error) = hub.compare_topics(&topics).await {
                tracing::warn!(
                    %error,
                    "failed to compare topics with the store; retrying in two seconds"
                );
                hub.queue_resync(&topics);
            }
        });
    }

    /// Compares the chats, and the chat lists of the users, among these topics with the store.
    pub(super) async fn compare_topics(self: &Arc<Self>, topics: &[Topic]) -> Result<()> {
        if topics.contains(&Topic::Everyone) {
            return self.resync_changed().await;
        }

        let of_chats = topics
            .iter()
            .filter_map(|topic| if let Topic::Chat(id) = topic { Some(*id) } else { None });
        let chats: Vec<ChatId> =
            of_chats.filter(|id| self.subscriptions(*id).contains_key(id)).collect();
        for batch in chats.chunks(CHECK_BATCH) {
            self.check_chats(batch).await?;
        }

        let of_users = topics
            .iter()
            .filter_map(|topic| if let Topic::User(id) = topic { Some(*id) } else { None });
        let connections: Vec<Arc<Connection>> =
            of_users.flat_map(|id| self.registry.streaming(id)).collect();
        for batch in connections.chunks(CHECK_BATCH) {
            self.check_lists(batch).await?;
        }
        Ok(())
    }

    /// Compares the sessions with a connection, and all chats that changed since the last resync,
    /// with the store. One run at a time; a call during a run causes another run.
    pub(super) fn resync_all(self: &Arc<Self>) {
        self.check_sessions_now();
        if !self.checking.chats.ask() {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                if let Err(error) = hub.resync_changed().await {
                    tracing::warn!(
                        %error,
                        "failed to compare changed chats with the store; \
                         retried with the next resync"
                    );
                }
                if !hub.checking.chats.again() {
                    return;
                }
            }
        });
    }

    /// Compares all chats that changed since the last resync with the store; all followed chats, if
    /// there was none.
    ///
    /// # Errors
    /// `unavailable` if the store did not answer every query. Then the next resync begins where
    /// this one did.
    pub(super) async fn resync_changed(self: &Arc<Self>) -> Result<()> {
        let (generation, last) = (self.generation(), *self.resync_progress.last.lock());
        // Read before the first row: a change during this resync is covered by the next one.
        let (slot, now) = (self.store.change_slot().await?, self.clock.now());

        match last {
            Some((last, at)) if last <= slot => self.resync_changed_since(last, at).await?,
            // There was no resync, or the database's clock stepped back: then a later change may
            // have an earlier slot than the last resync.
            Some(_) | None => self.resync_everything().await?,
        }

        if self.generation() == generation {
            *self.resync_progress.last.lock() = Some((slot, now));
        }
        Ok(())
    }

    /// Compares the chats that changed since a slot, and finds the members that joined since `at`,
    /// each with a margin.
    async fn resync_changed_since(self: &Arc<Self>, slot: i64, at: Timestamp) -> Result<()> {
        let joined_since = at.minus(JOIN_RESYNC_MARGIN);
        // The page after (`slot`, `behind`).
        let (mut slot, mut behind) = (slot - CHANGE_SLOTS_MARGIN, ChatId(Uuid::nil()));

        loop {
            let generation = self.generation();
            #[expect(clippy::cast_possible_wrap, reason = "a thousand")]
            let page = self.store.chats_changed(slot, behind, CHECK_BATCH as i64).await?;
            let Some(last) = page.last() else { return Ok(()) };
            (slot, behind) = (last.changed_slot, last.id);
            metrics::hub_chats_resynced(page.len());

            self.compare_changed(&page, generation);
            let ids: Vec<ChatId> =
                page.iter().filter(|chat| !chat.removed).map(|chat| chat.id).collect();
            for (chat_id, user_id) in self.store.joined(&ids, joined_since).await? {
                if self.lacks_member(chat_id, user_id) {
                    self.follow_as_member(chat_id, user_id).await?;
                }
            }

            if page.len() < CHECK_BATCH {
                return Ok(());
            }
        }
    }

    /// Heals the chats of a page that are behind it, and ends those that were removed.
    fn compare_changed(self: &Arc<Self>, page: &[ChangedChat], generation: u64) {
        let mut ahead = Vec::new();
        for chat in page {
            let delivered = self.subscriptions(chat.id).get(&chat.id).map(ChatSubscription::rev);
            match delivered {
                _ if self.generation() != generation => return,
                Some(_) if chat.removed => self.end_chat(chat.id, generation),
                Some(delivered) if delivered < chat.rev => {
                    self.heal_later(chat.id, Some(chat.rev), "check");
                }
                // Ordinarily, the chat changed after its row was read.
                Some(delivered) if delivered > chat.rev => ahead.push(chat.id),
                Some(_) | None => {}
            }
        }

        self.recheck_log(ahead);
    }

    /// Whether a connection of this user does not follow a chat that the user joined.
    fn lacks_member(&self, chat_id: ChatId, user_id: UserId) -> bool {
        let streaming = self.registry.streaming(user_id);
        let subscriptions = self.subscriptions(chat_id);
        let subscription = subscriptions.get(&chat_id);
        streaming
            .iter()
            .any(|connection| subscription.is_none_or(|it| !it.is_followed_by(connection)))
    }

    /// Compares all followed chats, and the chat lists of all connected users, with the store.
    async fn resync_everything(self: &Arc<Self>) -> Result<()> {
        for step in 0..FULL_RESYNC_STEPS {
            self.resync_part(step).await?;
        }
        Ok(())
    }

    /// Starts the next step of the full resync as a task.
    pub(super) fn full_resync_step_later(self: &Arc<Self>) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move { hub.full_resync_step().await });
    }

    /// Runs the next step of the full resync. All steps take 15 minutes.
    async fn full_resync_step(self: &Arc<Self>) {
        metrics::hub_chats(self.shards.iter().map(|shard| shard.lock().len()).sum());
        if let Err(error) = self.resync_part(self.resync_progress.next_step()).await {
            tracing::warn!(
                %error,
                "failed to compare a part of the followed chats with the store; \
                 retried in 15 minutes"
            );
        }
    }

    /// Compares one part of the chats and of the connections.
    async fn resync_part(self: &Arc<Self>, step: usize) -> Result<()> {
        let shards = self.shards.iter().skip(step).step_by(FULL_RESYNC_STEPS);
        let chats: HashSet<ChatId> =
            shards.flat_map(|it| it.lock().keys().copied().collect::<Vec<_>>()).collect();
        let chats: Vec<ChatId> = chats.into_iter().collect();
        for batch in chats.chunks(CHECK_BATCH) {
            self.check_chats(batch).await?;
        }

        let in_part = |id: u64| usize::try_from(id).unwrap_or(0) % FULL_RESYNC_STEPS == step;
        let connections: Vec<_> =
            self.registry.all().into_iter().filter(|it| in_part(it.id)).collect();
        for batch in connections.chunks(CHECK_BATCH) {
            self.check_lists(batch).await?;
        }
        Ok(())
    }
}
