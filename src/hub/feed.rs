//! One followed chat: who follows it, how far it was delivered, and what waits for a missing event.
//!
//! A feed is changed under its shard's lock only, so its followers all see its events in the same order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::connection::{Connection, Mark};
use super::crowd::{Crowd, Snapshot};
use super::registry::Registry;
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::limits::REORDER_MAX;
use crate::model::{Change, Chat, ChatEvent, ChatId, MessageId, Rev, Role, UserId};
use crate::wire::{EncodedEvent, ServerFrame};

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
    standing: Standing,
    /// The role of its user; unknown before the snapshot is read.
    role: Option<Role>,
}

impl Follower {
    fn has_left(&self) -> bool {
        matches!(self.standing, Standing::Left(_))
    }
}

/// What is known of a follower's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It follows ahead of its snapshot, which will tell.
    Unknown,
    /// Its user left at this revision; the snapshot, if it is newer, may still know better.
    Left(Rev),
    /// Its user joined while the snapshot was read.
    Joined,
    /// It is a member's.
    Settled,
}

/// A followed chat.
#[derive(Debug)]
pub struct Feed {
    /// The last revision delivered.
    rev: Rev,
    /// The last revision known to exist.
    seen: Rev,
    followers: Vec<Follower>,
    /// Events that came too early.
    waiting: BTreeMap<Rev, ChatEvent>,
    crowd: Crowd,
    /// Members of a channel above which ordinary members get counts instead of member events.
    events_max: i64,
    /// The last member event that the ordinary members did not get, until a count stands for it.
    uncounted: Option<Rev>,
    /// Whether somebody is fetching what is missing.
    pub healing: bool,
}

impl Feed {
    /// A feed of which everything up to `rev` counts as delivered. In a channel of more than `events_max` members the
    /// ordinary ones get counts instead of member events.
    pub fn delivered_up_to(rev: Rev, events_max: i64) -> Self {
        Self {
            rev,
            seen: rev,
            followers: Vec::new(),
            waiting: BTreeMap::new(),
            crowd: Crowd::default(),
            events_max,
            uncounted: None,
            healing: false,
        }
    }

    /// The last revision delivered.
    pub fn rev(&self) -> Rev {
        self.rev
    }

    /// The last revision known to exist.
    pub fn seen(&self) -> Rev {
        self.seen
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

    /// Adds a follower whose snapshot is yet to be read.
    pub fn follow_ahead(&mut self, chat_id: ChatId, connection: &Arc<Connection>) {
        match self.find(connection) {
            // It was taken in by a join that came first.
            Some(follower) => follower.standing = Standing::Joined,
            None => self.add(chat_id, connection, Rev(0), Standing::Unknown, None),
        }
    }

    /// Tells what a follower's snapshot held: the chat at a revision, or no such chat. It goes on from there if its
    /// user is a member; the later of snapshot and events decides.
    pub fn settle(&mut self, chat_id: ChatId, connection: &Arc<Connection>, snapshot: Option<Snapshot>) {
        if let Some(snapshot) = snapshot {
            self.crowd.learn(snapshot.crowd);
            if snapshot.role.is_some_and(Role::leads) {
                // From now on it gets the events themselves, so the count must not stand for earlier ones any more.
                self.send_count_to(chat_id, |follower| follower.connection.id == connection.id);
            }
        }

        let Some(follower) = self.find(connection) else {
            return;
        };
        follower.role = snapshot.and_then(|snapshot| snapshot.role).or(follower.role);
        let snapshot = snapshot.map(|snapshot| snapshot.rev);
        let stays = match (follower.standing, snapshot) {
            (Standing::Left(left), Some(rev)) => left <= rev,
            (Standing::Left(_) | Standing::Unknown, None) => false,
            (Standing::Unknown, Some(_)) | (Standing::Joined | Standing::Settled, _) => true,
        };
        if stays {
            follower.standing = Standing::Settled;
            follower.from = follower.from.max(snapshot.unwrap_or_default());
        } else {
            self.unfollow(connection);
            connection.remove_chat(chat_id);
        }
    }

    fn find(&mut self, connection: &Connection) -> Option<&mut Follower> {
        self.followers.iter_mut().find(|follower| follower.connection.id == connection.id)
    }

    fn add(
        &mut self,
        chat_id: ChatId,
        connection: &Arc<Connection>,
        from: Rev,
        standing: Standing,
        role: Option<Role>,
    ) {
        // One that is gone would never be removed again.
        if connection.add_chat(chat_id) {
            self.followers.push(Follower { connection: connection.clone(), from, standing, role });
        }
    }

    /// Removes a follower.
    pub fn unfollow(&mut self, connection: &Connection) {
        if let Some(index) = self.followers.iter().position(|follower| follower.connection.id == connection.id) {
            self.followers.swap_remove(index);
        }
    }

    /// Takes an event from the bus.
    pub fn accept(&mut self, event: ChatEvent, registry: &Registry) -> Accepted {
        if faults::on(Mutant::ArrivalOrder) || faults::on(Mutant::SeenAgain) && event.rev <= self.rev {
            self.deliver(event, registry);
            return Accepted::Settled;
        }
        self.expect_up_to(event.rev);
        if event.rev == self.rev.next() {
            self.deliver(event, registry);
            self.deliver_waiting(registry);
        } else if event.rev > self.rev && self.waiting.len() < REORDER_MAX {
            // Beyond the bound the newest are dropped: they will be fetched with the missing ones.
            self.waiting.insert(event.rev, event);
        }
        if self.has_gap() { Accepted::Gap } else { Accepted::Settled }
    }

    /// Delivers what was fetched from the store, up to `rev`. `sent_earlier`: messages that changed since they were sent,
    /// and by which revision they were sent.
    pub fn catch_up(
        &mut self,
        chat_id: ChatId,
        items: Vec<(Rev, Change)>,
        sent_earlier: &HashMap<MessageId, Rev>,
        crowd: Crowd,
        rev: Rev,
        registry: &Registry,
    ) {
        let known = self.rev;
        // Who joined in the gap and followed before it must have left in between, at a revision that is forgotten:
        // they get nothing of the gap, and join anew.
        for (rev, change) in items.iter().filter(|(rev, _)| *rev > known) {
            for user_id in change.joiners() {
                self.expel(chat_id, user_id, *rev);
            }
        }
        for (rev, change) in items {
            // Several may share a revision: a chat's first members.
            if rev <= known {
                continue;
            }
            match &change {
                Change::MessageSent(message) if sent_earlier.contains_key(&message.id) => {
                    // A follower that is ahead of the feed knows it as it was sent; so do all, if it was delivered while
                    // the store was asked.
                    let sent_rev = sent_earlier[&message.id];
                    let has_it = |follower: &Follower| known >= sent_rev || follower.from >= sent_rev;
                    let changed = Change::of_message(message.clone(), true);
                    self.rev = rev;
                    self.broadcast(ChatEvent { chat_id, rev, change: changed }, has_it);
                    self.broadcast(ChatEvent { chat_id, rev, change }, |follower| !has_it(follower));
                }
                _ => self.deliver(ChatEvent { chat_id, rev, change }, registry),
            }
        }
        self.rev = self.rev.max(rev);
        // Several changes of one member came as one, so what was counted may be off.
        self.crowd.learn(crowd);
        self.expect_up_to(rev);
        self.deliver_waiting(registry);
    }

    /// Delivers what it has, and forgets that something is missing: for the tests of those who would notice.
    pub fn skip_gap(&mut self, registry: &Registry) {
        for (_, event) in std::mem::take(&mut self.waiting) {
            self.deliver(event, registry);
        }
        self.rev = self.rev.max(self.seen);
    }

    /// Notes that the chat's log goes up to `rev`.
    pub fn expect_up_to(&mut self, rev: Rev) {
        self.seen = self.seen.max(rev);
    }

    /// The log ends at `rev`: what claimed to come after it was never committed.
    pub fn disbelieve_beyond(&mut self, rev: Rev) {
        self.waiting.retain(|waiting, _| *waiting <= rev);
        self.seen = self.rev.max(rev);
    }

    /// Whether something that exists was not delivered.
    pub fn has_gap(&self) -> bool {
        self.rev < self.seen
    }

    /// The chat is gone: so it is for all followers.
    pub fn end(&mut self, chat_id: ChatId) {
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        for follower in self.followers.drain(..) {
            // Whatever a snapshot says: this is the end of it.
            follower.connection.push(Some(chat_id), Some(Mark::Gone(Rev(i64::MAX))), &frame);
            follower.connection.remove_chat(chat_id);
        }
    }

    fn deliver_waiting(&mut self, registry: &Registry) {
        while let Some(first) = self.waiting.first_entry() {
            let next = self.rev.next();
            if *first.key() > next {
                return;
            }
            let event = first.remove();
            if event.rev == next {
                self.deliver(event, registry);
            }
        }
    }

    fn deliver(&mut self, event: ChatEvent, registry: &Registry) {
        let (chat_id, rev) = (event.chat_id, event.rev);
        self.rev = rev;
        self.crowd.count(&event.change, rev);
        match &event.change {
            Change::Created(views) => {
                for (user_id, view) in views {
                    self.admit(*user_id, view, rev, registry);
                }
            }
            Change::MemberJoined(joined) => {
                let (member, view) = (joined.0.clone(), joined.1.clone());
                self.broadcast(event, |_| true);
                if let Some(view) = view {
                    self.admit(member.user.id, &view, rev, registry);
                }
            }
            Change::MemberLeft(user_id) => {
                self.expel(chat_id, *user_id, rev);
                self.broadcast(event, |_| true);
            }
            Change::MemberChanged(member) => {
                let (user_id, role) = (member.user.id, member.role);
                self.send_count(chat_id);
                for follower in self.followers.iter_mut().filter(|it| it.connection.user_id == user_id) {
                    follower.role = Some(role);
                }
                self.broadcast(event, |_| true);
            }
            Change::Removed => self.end(chat_id),
            _ => self.broadcast(event, |_| true),
        }
    }

    /// Makes a user's connections follow, each told of the chat once.
    pub fn admit(&mut self, user_id: UserId, view: &Chat, rev: Rev, registry: &Registry) {
        // The view may be newer than the event, if it was read back from the store.
        let from = rev.max(view.rev);
        self.crowd.learn(Crowd::of(view));
        let frame = ServerFrame::ChatAdded { chat: view.clone() }.encode();
        for connection in registry.streaming(user_id) {
            match self.find(&connection) {
                Some(follower) if matches!(follower.standing, Standing::Left(_)) => {
                    follower.standing = Standing::Joined;
                    follower.from = follower.from.max(from);
                    follower.role = view.role;
                }
                // It is told of every event already.
                Some(_) => continue,
                None => self.add(view.id, &connection, from, Standing::Settled, view.role),
            }
            connection.push(Some(view.id), Some(Mark::Added(from)), &frame);
        }
    }

    /// Tells a user's connections of the chat anew, whatever they were told before: they go on from this view.
    pub fn add_again(&mut self, user_id: UserId, view: &Chat) {
        let frame = ServerFrame::ChatAdded { chat: view.clone() }.encode();
        for follower in self.followers.iter_mut().filter(|follower| follower.connection.user_id == user_id) {
            follower.from = follower.from.max(view.rev);
            // Whatever a snapshot holds of it: there it may have been off the list.
            follower.connection.push(Some(view.id), None, &frame);
        }
    }

    /// Ends the following of all of a user's connections, but of those that know better by a newer snapshot.
    fn expel(&mut self, chat_id: ChatId, user_id: UserId, rev: Rev) {
        if faults::on(Mutant::CachedMembership) {
            return;
        }
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        self.followers.retain_mut(|follower| {
            if follower.connection.user_id != user_id || follower.from >= rev {
                return true;
            }
            follower.connection.push(Some(chat_id), Some(Mark::Gone(rev)), &frame);
            if follower.standing == Standing::Settled {
                follower.connection.remove_chat(chat_id);
                return false;
            }
            follower.standing = Standing::Left(rev);
            true
        });
    }

    /// Hands an event to the followers that do not know it yet, as far as it is `meant` for them. A member event of a large
    /// channel goes to those who lead it and to the member; the others get a count later.
    fn broadcast(&mut self, event: ChatEvent, meant: impl Fn(&Follower) -> bool) {
        let (chat_id, rev, member) = (event.chat_id, event.rev, event.change.member());
        if member.is_none() || !self.crowd.is_counted_for(None, self.events_max) {
            // A client must learn what became of the revisions before this one.
            self.send_count(chat_id);
        }
        let Some(encoded) = EncodedEvent::new(event) else {
            return;
        };

        let (crowd, events_max) = (self.crowd, self.events_max);
        let is_counted = |follower: &Follower| {
            member.is_some_and(|member| member != follower.connection.user_id)
                && crowd.is_counted_for(follower.role, events_max)
        };
        let mut delivered = 0;
        for follower in self.followers.iter().filter(|it| it.from < rev && !it.has_left() && meant(it)) {
            if is_counted(follower) {
                self.uncounted = Some(rev);
                continue;
            }
            let frame = encoded.for_viewer(follower.connection.user_id);
            follower.connection.push(Some(chat_id), Some(Mark::Event(rev)), frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }

    /// Whether ordinary members wait for a count.
    pub fn has_uncounted(&self) -> bool {
        self.uncounted.is_some()
    }

    /// Sends the ordinary members of a large channel the number of members, if it changed since the last time.
    pub fn send_count(&mut self, chat_id: ChatId) {
        self.send_count_to(chat_id, |_| true);
        self.uncounted = None;
    }

    fn send_count_to(&self, chat_id: ChatId, meant: impl Fn(&Follower) -> bool) {
        let Some(rev) = self.uncounted else {
            return;
        };
        let member_count = self.crowd.member_count();
        let frame = ServerFrame::MemberCount { chat_id, rev, member_count }.encode();
        let mut delivered = 0;
        let leads = |follower: &Follower| follower.role.is_some_and(Role::leads);
        for follower in self.followers.iter().filter(|it| it.from < rev && !it.has_left() && !leads(it) && meant(it)) {
            follower.connection.push(Some(chat_id), Some(Mark::Event(rev)), &frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::connection::Taken;
    use super::*;
    use crate::cluster::memory::MemoryBus;
    use crate::model::{Message, MessageKind, SessionId, Timestamp};

    const CHAT: ChatId = ChatId(Uuid::from_u128(1));

    fn message(rev: i64, text: &str) -> Message {
        Message {
            chat_id: CHAT,
            id: MessageId(1),
            rev: Rev(rev),
            sender_id: UserId(Uuid::from_u128(2)),
            kind: MessageKind::Text,
            text: Some(text.to_owned()),
            reply_to: None,
            client_id: None,
            sent_at: Timestamp::from_ms(0),
            edited_at: None,
            removed_at: None,
        }
    }

    fn kinds(connection: &Connection) -> Vec<String> {
        let mut frames = Vec::new();
        assert!(matches!(connection.take(&mut frames, usize::MAX), Taken::Frames));
        let kind = |frame: &bytes::Bytes| serde_json::from_slice::<serde_json::Value>(frame).unwrap()["type"].clone();
        frames.iter().map(|frame| kind(frame).as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_message_that_was_delivered_while_the_store_was_asked_comes_from_it_as_edited() {
        let registry = Registry::new(std::sync::Arc::new(MemoryBus::new().0));
        let connection = Connection::new(1, UserId(Uuid::from_u128(3)), SessionId::default(), 0);
        let mut feed = Feed::delivered_up_to(Rev(1), 1000);
        assert!(connection.hold());
        feed.follow_ahead(CHAT, &connection);
        feed.settle(CHAT, &connection, Some(Rev(1).into()));
        connection.go_live(&HashMap::from([(CHAT, Rev(1))]));
        // The store is asked for what came after rev 1, and answers with the message as it is after its edit.
        let sent = ChatEvent { chat_id: CHAT, rev: Rev(2), change: Change::MessageSent(message(2, "hello")) };
        assert_eq!(feed.accept(sent, &registry), Accepted::Settled);
        assert_eq!(kinds(&connection), ["new_message"]);

        let items = vec![(Rev(3), Change::MessageSent(message(3, "goodbye")))];
        feed.catch_up(CHAT, items, &HashMap::from([(MessageId(1), Rev(2))]), Crowd::default(), Rev(3), &registry);
        assert_eq!(kinds(&connection), ["message_edited"]);
        assert_eq!(feed.rev(), Rev(3));
    }

    #[test]
    fn a_message_that_nobody_heard_of_comes_from_the_store_as_new_however_often_it_was_edited() {
        let registry = Registry::new(std::sync::Arc::new(MemoryBus::new().0));
        let connection = Connection::new(1, UserId(Uuid::from_u128(3)), SessionId::default(), 0);
        let mut feed = Feed::delivered_up_to(Rev(1), 1000);
        assert!(connection.hold());
        feed.follow_ahead(CHAT, &connection);
        feed.settle(CHAT, &connection, Some(Rev(1).into()));
        connection.go_live(&HashMap::from([(CHAT, Rev(1))]));
        let items = vec![(Rev(3), Change::MessageSent(message(3, "goodbye")))];
        feed.catch_up(CHAT, items, &HashMap::from([(MessageId(1), Rev(2))]), Crowd::default(), Rev(3), &registry);
        assert_eq!(kinds(&connection), ["new_message"]);
    }
}
