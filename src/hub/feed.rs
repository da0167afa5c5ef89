//! One followed chat: who follows it, how far it was delivered, and what waits for a missing event.
//!
//! A feed is changed under its shard's lock only, so its followers all see its events in the same order.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::connection::{Connection, Mark};
use super::frame::{EncodedEvent, ServerFrame};
use super::registry::Registry;
use crate::metrics;
use crate::model::limits::REORDER_MAX;
use crate::model::{Change, Chat, ChatEvent, ChatId, Rev, UserId};

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Delivered, or known already.
    Settled,
    /// It waits for one that is missing.
    Gap,
}

#[derive(Debug)]
struct Follower {
    connection: Arc<Connection>,
    /// It knows the chat up to this revision by other means.
    from: Rev,
}

/// A followed chat.
#[derive(Debug, Default)]
pub struct Feed {
    /// The last revision delivered; `None` until a snapshot tells where to begin.
    rev: Option<Rev>,
    followers: Vec<Follower>,
    /// Events that came too early.
    waiting: BTreeMap<Rev, ChatEvent>,
    /// Whether somebody is fetching what is missing.
    pub healing: bool,
}

/// Who enters the chat by this change.
pub fn joiners(change: &Change) -> impl Iterator<Item = UserId> {
    let created: &[(UserId, Chat)] = if let Change::Created(views) = change { views } else { &[] };
    let joined = if let Change::MemberJoined(joined) = change { Some(joined.0.user.id) } else { None };
    created.iter().map(|(user_id, _)| *user_id).chain(joined)
}

impl Feed {
    /// A feed of which everything up to `rev` counts as delivered.
    pub fn delivered_up_to(rev: Rev) -> Self {
        Self { rev: Some(rev), ..Self::default() }
    }

    /// The last revision delivered.
    pub fn rev(&self) -> Option<Rev> {
        self.rev
    }

    /// Whether nobody follows it any more.
    pub fn is_unfollowed(&self) -> bool {
        self.followers.is_empty()
    }

    /// Its followers.
    pub fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.followers.iter().map(|follower| &follower.connection)
    }

    /// Whether this connection follows.
    pub fn is_followed_by(&self, connection: &Connection) -> bool {
        self.connections().any(|follower| follower.id == connection.id)
    }

    /// Adds a follower who knows the chat up to `from`, or tells what it knows. Whether it is new.
    pub fn follow(&mut self, connection: &Arc<Connection>, from: Rev) -> bool {
        if let Some(follower) = self.followers.iter_mut().find(|follower| follower.connection.id == connection.id) {
            follower.from = follower.from.max(from);
            return false;
        }
        self.followers.push(Follower { connection: connection.clone(), from });
        true
    }

    /// Removes a follower.
    pub fn unfollow(&mut self, connection: &Connection) {
        if let Some(index) = self.followers.iter().position(|follower| follower.connection.id == connection.id) {
            self.followers.swap_remove(index);
        }
    }

    /// Says where to begin, if nothing was delivered yet.
    pub fn prime(&mut self, rev: Rev, registry: &Registry) {
        if self.rev.is_none() {
            self.rev = Some(rev);
            self.deliver_waiting(registry);
        }
    }

    /// Takes an event from the bus.
    pub fn accept(&mut self, event: ChatEvent, registry: &Registry) -> Accepted {
        match self.rev {
            Some(rev) if event.rev <= rev => Accepted::Settled,
            Some(rev) if event.rev == rev.next() => {
                self.deliver(event, registry);
                self.deliver_waiting(registry);
                if self.waiting.is_empty() { Accepted::Settled } else { Accepted::Gap }
            }
            _ => {
                // Beyond the bound the newest are dropped: they will be fetched with the missing ones.
                if self.waiting.len() < REORDER_MAX {
                    self.waiting.insert(event.rev, event);
                }
                if self.rev.is_some() { Accepted::Gap } else { Accepted::Settled }
            }
        }
    }

    /// Delivers what was fetched from the store, up to `rev`.
    pub fn catch_up(&mut self, chat_id: ChatId, items: Vec<(Rev, Change)>, rev: Rev, registry: &Registry) {
        let known = self.rev.unwrap_or_default();
        // Who joined in the gap and followed before it must have left in between, at a revision that is forgotten:
        // they get nothing of the gap, and join anew.
        for (_, change) in items.iter().filter(|(rev, _)| *rev > known) {
            for user_id in joiners(change) {
                self.expel(chat_id, user_id);
            }
        }
        for (rev, change) in items {
            if self.rev.is_none_or(|known| rev > known) {
                self.deliver(ChatEvent { chat_id, rev, change }, registry);
            }
        }
        self.rev = Some(self.rev.unwrap_or_default().max(rev));
        self.deliver_waiting(registry);
    }

    /// Whether an event waits for a missing one.
    pub fn has_gap(&self) -> bool {
        self.rev.is_some() && !self.waiting.is_empty()
    }

    /// The chat is gone: so it is for all followers.
    pub fn end(&mut self, chat_id: ChatId) {
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        for follower in self.followers.drain(..) {
            follower.connection.push(Some(chat_id), Some(Mark::Gone), &frame);
            follower.connection.remove_chat(chat_id);
        }
    }

    fn deliver_waiting(&mut self, registry: &Registry) {
        while let Some(first) = self.waiting.first_entry() {
            let rev = self.rev.unwrap_or_default();
            if *first.key() > rev.next() {
                return;
            }
            let event = first.remove();
            if event.rev == rev.next() {
                self.deliver(event, registry);
            }
        }
    }

    fn deliver(&mut self, event: ChatEvent, registry: &Registry) {
        let (chat_id, rev) = (event.chat_id, event.rev);
        self.rev = Some(rev);
        match &event.change {
            Change::Created(views) => {
                for (user_id, view) in views {
                    self.admit(*user_id, view, rev, registry);
                }
            }
            Change::MemberJoined(joined) => {
                let (member, view) = (joined.0.clone(), joined.1.clone());
                self.broadcast(event);
                if let Some(view) = view {
                    self.admit(member.user.id, &view, rev, registry);
                }
            }
            Change::MemberLeft(user_id) => {
                self.expel(chat_id, *user_id);
                self.broadcast(event);
            }
            Change::Removed => self.end(chat_id),
            _ => self.broadcast(event),
        }
    }

    /// Makes a user's connections follow, each told of the chat once.
    fn admit(&mut self, user_id: UserId, view: &Chat, rev: Rev, registry: &Registry) {
        // The view may be newer than the event, if it was read back from the store.
        let from = rev.max(view.rev);
        let frame = ServerFrame::ChatAdded { chat: view.clone() }.encode();
        for connection in registry.streaming(user_id) {
            if self.follow(&connection, from) {
                connection.add_chat(view.id);
                connection.push(Some(view.id), Some(Mark::Added(from)), &frame);
            }
        }
    }

    /// Ends the following of all of a user's connections.
    fn expel(&mut self, chat_id: ChatId, user_id: UserId) {
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        self.followers.retain(|follower| {
            let stays = follower.connection.user_id != user_id;
            if !stays {
                follower.connection.push(Some(chat_id), Some(Mark::Gone), &frame);
                follower.connection.remove_chat(chat_id);
            }
            stays
        });
    }

    fn broadcast(&self, event: ChatEvent) {
        let (chat_id, rev) = (event.chat_id, event.rev);
        let Some(encoded) = EncodedEvent::new(event) else {
            return;
        };
        let mut delivered = 0;
        for follower in self.followers.iter().filter(|follower| follower.from < rev) {
            let frame = encoded.for_viewer(follower.connection.user_id);
            follower.connection.push(Some(chat_id), Some(Mark::Event(rev)), frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }
}
