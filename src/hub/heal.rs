//! Healing: fetches from the store the events that the followers of a chat missed, and finds users
//! that joined a chat without their connections following it.
//!
//! All of this runs in vital tasks, whose panic ends the process. No other task would complete the
//! work of a panicked one, and the followers would never get the missing events.

use std::collections::HashMap;
use std::sync::Arc;

use super::membership_size::MembershipSize;
use super::subscription::ChatSubscription;
use super::{CloseReason, Connection, Hub};
use crate::metrics;
use crate::model::faults::mutant;
use crate::model::limits::{HEAL_RETRY, REORDER_WAIT, SYNC_CHANGES_MAX};
use crate::model::{Change, ChatId, Result, Rev, SessionId, UserId};

/// Chats or sessions compared with the store in one statement.
pub(super) const CHECK_BATCH: usize = 1000;
/// Reads of a view before the hub gives up, if events keep overtaking them. The full resync finds a
/// missed join. The client's next `sync` contains a chat that was opened again.
const VIEW_READS_MAX: usize = 50;

impl Hub {
    /// Fetches the missing events of a chat, unless they arrive within [`REORDER_WAIT`]. `behind`:
    /// a revision that exists in the store. `reason` labels the metric.
    pub(super) fn heal_later(
        self: &Arc<Self>,
        chat_id: ChatId,
        behind: Option<Rev>,
        reason: &'static str,
    ) {
        {
            let mut subscriptions = self.subscriptions(chat_id);
            let Some(subscription) = subscriptions.get_mut(&chat_id) else {
                return;
            };
            subscription.expect_up_to(behind.unwrap_or_default());
            mutant!(NoGapFill => return subscription.skip_gap(&self.registry));
            if std::mem::replace(&mut subscription.healing, true) {
                return;
            }
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(REORDER_WAIT).await;
            while hub.still_has_gap(chat_id) && !hub.stop.is_cancelled() {
                metrics::hub_heal(reason);
                if let Err(error) = hub.heal(chat_id).await {
                    tracing::warn!(
                        %error,
                        "failed to fetch the missing events of a chat; retrying in a second"
                    );
                    tokio::time::sleep(HEAL_RETRY).await;
                }
            }
        });
    }

    /// Whether an event is still missing. If not, this healing ends, and the next gap starts
    /// another.
    fn still_has_gap(&self, chat_id: ChatId) -> bool {
        let mut subscriptions = self.subscriptions(chat_id);
        let Some(subscription) = subscriptions.get_mut(&chat_id) else {
            return false;
        };

        // Under the lock: no gap can begin between the check and the end of this healing.
        subscription.healing = subscription.has_gap();
        subscription.healing
    }

    async fn heal(&self, chat_id: ChatId) -> Result<()> {
        let generation = self.generation();
        let Some((known, seen)) =
            self.subscriptions(chat_id).get(&chat_id).map(|it| (it.rev(), it.seen()))
        else {
            return Ok(());
        };

        let Some(changes) = self.store.changes(chat_id, None, known, SYNC_CHANGES_MAX).await?
        else {
            self.end_chat(chat_id, generation);
            return Ok(());
        };

        let mut items = changes.items;
        mutant!(HealBackwards => items.reverse());

        // A user that joined in the gap and is connected here needs a view of the chat.
        for (_, change) in &mut items {
            if let Change::MemberJoined(joined) = change
                && joined.1.is_none()
                && self.registry.has_user(joined.0.user.id)
            {
                joined.1 = self.store.chat(chat_id, joined.0.user.id).await?;
            }
        }

        let mut subscriptions = self.subscriptions(chat_id);
        if self.generation() != generation {
            return Ok(());
        }
        if let Some(subscription) = subscriptions.get_mut(&chat_id) {
            let size = MembershipSize::new(changes.kind, changes.member_count, changes.rev);
            // The count belongs to the chat's present revision, so only the last page has one.
            let size = if changes.complete { size } else { MembershipSize::default() };
            subscription.catch_up(
                chat_id,
                items,
                &changes.sent_earlier,
                size,
                changes.rev,
                &self.registry,
            );
            self.count_later(chat_id, subscription);
            if changes.complete && changes.rev < seen {
                // An event announced the revision `seen` before the store was read, and the store
                // does not have it: it was never committed.
                subscription.discard_beyond(changes.rev);
            }
            self.close_if_unfollowed(&mut subscriptions, chat_id);
        }
        Ok(())
    }

    /// Compares a chat with the store after [`REORDER_WAIT`].
    pub(super) fn check_later(self: &Arc<Self>, chat_id: ChatId) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(REORDER_WAIT).await;
            if let Err(error) = hub.check_chats(&[chat_id]).await {
                tracing::warn!(
                    %error,
                    "failed to compare a chat with the store; retried with the next resync"
                );
            }
        });
    }

    /// Ends the subscription to a removed chat, unless the epoch changed since `generation`.
    pub(super) fn end_chat(&self, chat_id: ChatId, generation: u64) {
        let mut subscriptions = self.subscriptions(chat_id);
        if self.generation() == generation
            && let Some(subscription) = subscriptions.get_mut(&chat_id)
        {
            subscription.end(chat_id);
            self.close_if_unfollowed(&mut subscriptions, chat_id);
        }
    }

    /// Compares all sessions that have a connection with the store. One run at a time; a call
    /// during a run causes another run.
    pub(super) fn check_sessions_now(self: &Arc<Self>) {
        if !self.checking.sessions.ask() {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                for batch in hub.registry.sessions().chunks(CHECK_BATCH) {
                    if let Err(error) = hub.check_sessions(batch).await {
                        tracing::warn!(
                            %error,
                            "failed to compare the connected sessions with the store; \
                             retrying in 3 s"
                        );
                        break;
                    }
                }
                if !hub.checking.sessions.again() {
                    return;
                }
            }
        });
    }

    /// Compares the delivered revisions of chats with the store. Heals chats that are behind it.
    pub(super) async fn check_chats(self: &Arc<Self>, chats: &[ChatId]) -> Result<()> {
        let generation = self.generation();
        // Read before the store: an event that is delivered meanwhile may be newer than the answer.
        let delivered: Vec<Option<Rev>> = chats
            .iter()
            .map(|chat_id| self.subscriptions(*chat_id).get(chat_id).map(ChatSubscription::rev))
            .collect();

        let revs: HashMap<ChatId, Rev> = self.store.revs(chats).await?.into_iter().collect();
        if self.generation() != generation {
            return Ok(());
        }

        for (chat_id, delivered) in chats.iter().zip(delivered) {
            match revs.get(chat_id) {
                Some(rev) if delivered.is_some_and(|delivered| delivered > *rev) => {
                    self.recheck_log(vec![*chat_id]);
                }
                Some(rev) => {
                    let behind =
                        self.subscriptions(*chat_id).get(chat_id).is_some_and(|it| it.rev() < *rev);
                    if behind {
                        self.heal_later(*chat_id, Some(*rev), "check");
                    }
                }
                None => self.end_chat(*chat_id, generation),
            }
        }
        Ok(())
    }

    /// Makes connections follow the chats in their user's list that they do not follow yet: the
    /// event of the join was lost.
    pub(super) async fn check_lists(
        self: &Arc<Self>,
        connections: &[Arc<Connection>],
    ) -> Result<()> {
        let live: Vec<(&Arc<Connection>, usize)> = connections
            .iter()
            .filter_map(|connection| {
                connection.chats_if_streaming().map(|chats| (connection, chats.len()))
            })
            .collect();
        let users: Vec<UserId> = live.iter().map(|(connection, _)| connection.user_id).collect();
        let counts: HashMap<UserId, usize> =
            self.store.chat_counts(&users).await?.into_iter().collect();

        for (connection, followed) in live {
            // A join whose event is under way makes the counts differ for a moment. That costs one
            // read of the list.
            if counts.get(&connection.user_id).is_some_and(|count| *count > followed) {
                self.follow_missing(connection).await?;
            }
        }
        Ok(())
    }

    async fn follow_missing(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let heads = self.store.chat_heads(connection.user_id).await?;
        let followed = connection.chats_if_streaming().unwrap_or_default();
        for (chat_id, _) in heads.into_iter().filter(|(chat_id, _)| !followed.contains(chat_id)) {
            self.follow_as_member(chat_id, connection.user_id).await?;
        }
        Ok(())
    }

    /// Starts [`Self::follow_as_member`] as a task.
    pub(super) fn follow_as_member_later(self: &Arc<Self>, chat_id: ChatId, user_id: UserId) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            if let Err(error) = hub.follow_as_member(chat_id, user_id).await {
                tracing::warn!(
                    %error,
                    "failed to read a chat that a connected user joined; \
                     retried with the next resync"
                );
            }
        });
    }

    /// Makes a user's connections follow a chat, if the user is a member.
    pub(super) async fn follow_as_member(
        self: &Arc<Self>,
        chat_id: ChatId,
        user_id: UserId,
    ) -> Result<()> {
        metrics::hub_heal("join");

        for _ in 0..VIEW_READS_MAX {
            if self.try_to_follow_as_member(chat_id, user_id).await? {
                break;
            }
        }

        self.check_later(chat_id);
        Ok(())
    }

    /// Returns false if an event overtook the store's answer: the user may have left since and must
    /// not follow.
    async fn try_to_follow_as_member(&self, chat_id: ChatId, user_id: UserId) -> Result<bool> {
        let generation = self.generation();
        let Some(view) = self.store.chat(chat_id, user_id).await? else {
            return Ok(true);
        };

        let mut subscriptions = self.subscriptions(chat_id);
        if self.generation() != generation {
            return Ok(true);
        }

        let subscription = self.open(&mut subscriptions, chat_id, view.rev);
        let current = subscription.rev() <= view.rev;
        if current {
            subscription.add_member(user_id, &view, view.rev, &self.registry);
        }
        self.close_if_unfollowed(&mut subscriptions, chat_id);
        Ok(current)
    }

    /// Starts a task that reads a chat that is back in the user's list, and sends `chat_added` to
    /// the user's connections.
    pub(super) fn add_again_later(self: &Arc<Self>, chat_id: ChatId, user_id: UserId) {
        let is_followed = |it: &ChatSubscription| {
            it.connections().any(|connection| connection.user_id == user_id)
        };
        if !self.subscriptions(chat_id).get(&chat_id).is_some_and(is_followed) {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            for _ in 0..VIEW_READS_MAX {
                match hub.try_to_add_again(chat_id, user_id).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            "failed to read a chat that a connected user opened again; \
                             the client gets it with its next sync"
                        );
                        break;
                    }
                }
            }
        });
    }

    /// Returns false if an event overtook the store's answer: the older view would have the client
    /// expect that event again.
    async fn try_to_add_again(&self, chat_id: ChatId, user_id: UserId) -> Result<bool> {
        let generation = self.generation();
        let Some(view) = self.store.chat(chat_id, user_id).await? else {
            return Ok(true);
        };

        let mut subscriptions = self.subscriptions(chat_id);
        let Some(subscription) =
            subscriptions.get_mut(&chat_id).filter(|_| self.generation() == generation)
        else {
            return Ok(true);
        };

        let current = subscription.rev() <= view.rev;
        if current {
            subscription.add_again(user_id, &view);
        }
        Ok(current)
    }

    /// Closes the connections whose session ended or was logged into again.
    async fn check_sessions(&self, sessions: &[SessionId]) -> Result<()> {
        mutant!(RevokeWithoutClosing => return Ok(()));
        let live = self.store.live_sessions(sessions, self.clock.now()).await?;
        for connection in self.registry.of_sessions(sessions) {
            if !connection.is_of_current_login(live.get(&connection.session_id).copied()) {
                connection.close(CloseReason::SessionEnded);
            }
        }
        Ok(())
    }
}
