//! Making up for what the bus lost: fetching from the store what a chat's followers miss.
//!
//! All of it is vital: of what a task that panicked had begun, no other would take charge, and its followers would never
//! hear of what they miss.

use std::collections::HashMap;
use std::sync::Arc;

use super::crowd::Crowd;
use super::feed::Feed;
use super::{CloseReason, Connection, Hub};
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::limits::{HEAL_RETRY, REORDER_WAIT, SYNC_CHANGES_MAX};
use crate::model::{Change, ChatId, Result, Rev, SessionId, Topic, UserId};

/// Chats or sessions compared with the store in one statement.
pub(super) const CHECK_BATCH: usize = 1000;
/// How often a view is read again because the chat went on meanwhile. Then the slow check tries again, where somebody
/// joined; a chat opened again is told at the next `sync`.
const TAKE_IN_TRIES_MAX: usize = 50;

impl Hub {
    /// Fetches what is missing of a chat, unless it arrives within a moment. `behind`: known to exist in the store.
    pub(super) fn heal_later(self: &Arc<Self>, chat_id: ChatId, behind: Option<Rev>, reason: &'static str) {
        {
            let mut feeds = self.feeds(chat_id);
            let Some(feed) = feeds.get_mut(&chat_id) else {
                return;
            };
            feed.expect_up_to(behind.unwrap_or_default());
            if faults::on(Mutant::NoGapFill) {
                feed.skip_gap(&self.registry);
                return;
            }
            if std::mem::replace(&mut feed.healing, true) {
                return;
            }
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(REORDER_WAIT).await;
            while hub.lacks(chat_id) && !hub.stop.is_cancelled() {
                metrics::hub_heal(reason);
                if let Err(error) = hub.heal(chat_id).await {
                    tracing::warn!(%error, "could not fetch what the followers of a chat miss; trying again");
                    tokio::time::sleep(HEAL_RETRY).await;
                }
            }
        });
    }

    /// Whether something is still missing. If not, the next gap starts a healing of its own.
    fn lacks(&self, chat_id: ChatId) -> bool {
        let mut feeds = self.feeds(chat_id);
        let Some(feed) = feeds.get_mut(&chat_id) else {
            return false;
        };
        feed.healing = feed.has_gap();
        feed.healing
    }

    async fn heal(&self, chat_id: ChatId) -> Result<()> {
        let generation = self.generation();
        let Some((known, seen)) = self.feeds(chat_id).get(&chat_id).map(|feed| (feed.rev(), feed.seen())) else {
            return Ok(());
        };
        let Some(changes) = self.store.changes(chat_id, None, known, SYNC_CHANGES_MAX).await? else {
            self.end_chat(chat_id, generation);
            return Ok(());
        };
        let mut items = changes.items;
        if faults::on(Mutant::HealBackwards) {
            items.reverse();
        }
        for (_, change) in &mut items {
            if let Change::MemberJoined(joined) = change
                && joined.1.is_none()
                && self.registry.has_user(joined.0.user.id)
            {
                joined.1 = self.store.chat(chat_id, joined.0.user.id).await?;
            }
        }
        let mut feeds = self.feeds(chat_id);
        if self.generation() != generation {
            return Ok(());
        }
        if let Some(feed) = feeds.get_mut(&chat_id) {
            let crowd = Crowd::new(changes.kind, changes.member_count, changes.rev);
            // The count is that of the chat's present revision, so a page before the last says nothing.
            let crowd = if changes.complete { crowd } else { Crowd::default() };
            feed.catch_up(chat_id, items, &changes.sent_earlier, crowd, changes.rev, &self.registry);
            self.count_later(chat_id, feed);
            if changes.complete && changes.rev < seen {
                // What was seen before the store was asked, and is not there, was never committed.
                feed.disbelieve_beyond(changes.rev);
            }
            self.close_if_unfollowed(&mut feeds, chat_id);
        }
        Ok(())
    }

    /// Compares a chat with the store in a moment.
    pub(super) fn check_later(self: &Arc<Self>, chat_id: ChatId) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(REORDER_WAIT).await;
            if let Err(error) = hub.check_chats(&[chat_id]).await {
                tracing::warn!(%error, "could not compare a chat with the store");
            }
        });
    }

    pub(super) fn end_chat(&self, chat_id: ChatId, generation: u64) {
        let mut feeds = self.feeds(chat_id);
        if self.generation() == generation
            && let Some(feed) = feeds.get_mut(&chat_id)
        {
            feed.end(chat_id);
            self.close_if_unfollowed(&mut feeds, chat_id);
        }
    }

    /// Compares what the bus begins to tell of with the store: it may have missed what came before.
    pub(super) fn look_at(self: &Arc<Self>, topics: Vec<Topic>) {
        for topic in &topics {
            if let Topic::Presence(user) = topic {
                self.presence.resync_soon(*user);
            }
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            if let Err(error) = hub.compare(&topics).await {
                tracing::warn!(%error, "could not compare what the bus may have lost with the store; trying again");
                hub.doubt(topics);
            }
        });
    }

    /// Compares these chats, and the lists of these users, with the store.
    pub(super) async fn compare(self: &Arc<Self>, topics: &[Topic]) -> Result<()> {
        if topics.contains(&Topic::Everyone) {
            return self.look_for_changes().await;
        }
        let of_chats = topics.iter().filter_map(|topic| if let Topic::Chat(id) = topic { Some(*id) } else { None });
        let chats: Vec<ChatId> = of_chats.filter(|id| self.feeds(*id).contains_key(id)).collect();
        let of_users = topics.iter().filter_map(|topic| if let Topic::User(id) = topic { Some(*id) } else { None });
        let connections: Vec<Arc<Connection>> = of_users.flat_map(|id| self.registry.streaming(id)).collect();
        for batch in chats.chunks(CHECK_BATCH) {
            self.check_chats(batch).await?;
        }
        for batch in connections.chunks(CHECK_BATCH) {
            self.check_lists(batch).await?;
        }
        Ok(())
    }

    /// Takes the next step of the slow comparison.
    pub(super) fn belt_later(self: &Arc<Self>) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move { hub.belt().await });
    }

    /// Has all sessions with a connection compared with the store.
    pub(super) fn check_sessions_now(self: &Arc<Self>) {
        if !self.checking.sessions.ask() {
            return;
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                for batch in hub.registry.sessions().chunks(CHECK_BATCH) {
                    if let Err(error) = hub.check_sessions(batch).await {
                        tracing::warn!(%error, "could not compare the connected sessions with the store");
                        break;
                    }
                }
                if !hub.checking.sessions.again() {
                    return;
                }
            }
        });
    }

    /// Has what changed since the last look compared with the store.
    pub(super) fn check_all_now(self: &Arc<Self>) {
        self.check_sessions_now();
        if !self.checking.chats.ask() {
            return;
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                if let Err(error) = hub.look_for_changes().await {
                    tracing::warn!(%error, "could not look in the store for what changed");
                }
                if !hub.checking.chats.again() {
                    return;
                }
            }
        });
    }

    pub(super) async fn check_chats(self: &Arc<Self>, chats: &[ChatId]) -> Result<()> {
        let generation = self.generation();
        // Noted before the store is asked: what is delivered meanwhile may be newer than its answer.
        let delivered: Vec<Option<Rev>> =
            chats.iter().map(|chat_id| self.feeds(*chat_id).get(chat_id).map(Feed::rev)).collect();
        let revs: HashMap<ChatId, Rev> = self.store.revs(chats).await?.into_iter().collect();
        if self.generation() != generation {
            return Ok(());
        }
        for (chat_id, delivered) in chats.iter().zip(delivered) {
            match revs.get(chat_id) {
                Some(rev) if delivered.is_some_and(|delivered| delivered > *rev) => self.doubt_log(vec![*chat_id]),
                Some(rev) => {
                    let behind = self.feeds(*chat_id).get(chat_id).is_some_and(|feed| feed.rev() < *rev);
                    if behind {
                        self.heal_later(*chat_id, Some(*rev), "check");
                    }
                }
                None => self.end_chat(*chat_id, generation),
            }
        }
        Ok(())
    }

    /// Looks for chats that a user has and a connection does not follow: nobody here noticed that they joined.
    pub(super) async fn check_lists(self: &Arc<Self>, connections: &[Arc<Connection>]) -> Result<()> {
        let live: Vec<(&Arc<Connection>, usize)> = connections
            .iter()
            .filter_map(|connection| connection.chats_if_streaming().map(|chats| (connection, chats.len())))
            .collect();
        let users: Vec<UserId> = live.iter().map(|(connection, _)| connection.user_id).collect();
        let counts: HashMap<UserId, usize> = self.store.chat_counts(&users).await?.into_iter().collect();
        for (connection, followed) in live {
            // A count may be off for a moment; a list that is longer than what is followed is worth a look.
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
            self.take_in(chat_id, connection.user_id).await?;
        }
        Ok(())
    }

    /// Has a user's connections follow a chat soon, if the user is a member.
    pub(super) fn take_in_later(self: &Arc<Self>, chat_id: ChatId, user_id: UserId) {
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            if let Err(error) = hub.take_in(chat_id, user_id).await {
                tracing::warn!(%error, "could not read a chat that a connected user joined");
            }
        });
    }

    pub(super) async fn take_in(self: &Arc<Self>, chat_id: ChatId, user_id: UserId) -> Result<()> {
        metrics::hub_heal("join");
        for _ in 0..TAKE_IN_TRIES_MAX {
            if self.try_to_take_in(chat_id, user_id).await? {
                break;
            }
        }
        self.check_later(chat_id);
        Ok(())
    }

    /// Has a member's connections follow a chat. Fails if the feed was faster than the store's answer: whoever left since
    /// must not be taken in.
    async fn try_to_take_in(&self, chat_id: ChatId, user_id: UserId) -> Result<bool> {
        let generation = self.generation();
        let Some(view) = self.store.chat(chat_id, user_id).await? else {
            return Ok(true);
        };
        let mut feeds = self.feeds(chat_id);
        if self.generation() != generation {
            return Ok(true);
        }
        let feed = self.open(&mut feeds, chat_id, view.rev);
        let current = feed.rev() <= view.rev;
        if current {
            feed.admit(user_id, &view, view.rev, &self.registry);
        }
        self.close_if_unfollowed(&mut feeds, chat_id);
        Ok(current)
    }

    /// Tells a user's connections of a chat that is back in their list, as soon as it is read.
    pub(super) fn add_again_later(self: &Arc<Self>, chat_id: ChatId, user_id: UserId) {
        let is_theirs = |feed: &Feed| feed.connections().any(|connection| connection.user_id == user_id);
        if !self.feeds(chat_id).get(&chat_id).is_some_and(is_theirs) {
            return;
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            for _ in 0..TAKE_IN_TRIES_MAX {
                match hub.try_to_add_again(chat_id, user_id).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "could not read a chat that a connected user opened again");
                        break;
                    }
                }
            }
        });
    }

    /// Fails if the feed was faster than the store's answer: what it delivered since must not be told as still to come.
    async fn try_to_add_again(&self, chat_id: ChatId, user_id: UserId) -> Result<bool> {
        let generation = self.generation();
        let Some(view) = self.store.chat(chat_id, user_id).await? else {
            return Ok(true);
        };
        let mut feeds = self.feeds(chat_id);
        let Some(feed) = feeds.get_mut(&chat_id).filter(|_| self.generation() == generation) else {
            return Ok(true);
        };
        let current = feed.rev() <= view.rev;
        if current {
            feed.add_again(user_id, &view);
        }
        Ok(current)
    }

    async fn check_sessions(&self, sessions: &[SessionId]) -> Result<()> {
        if faults::on(Mutant::RevokeWithoutClosing) {
            return Ok(());
        }
        let live = self.store.live_sessions(sessions, self.clock.now()).await?;
        for connection in self.registry.of_sessions(sessions) {
            if !connection.is_of(live.get(&connection.session_id).copied()) {
                connection.close(CloseReason::SessionEnded);
            }
        }
        Ok(())
    }
}
