//! The subscription to one chat: its followers, the last revision delivered to them, and the events
//! that wait for a missing event.
//!
//! A subscription changes only under the lock of its shard, so all followers get the events in the
//! same order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::connection::{Connection, FramePosition};
use super::membership_size::{MembershipSize, Snapshot};
use super::registry::Registry;
use crate::metrics;
use crate::model::faults::mutant;
use crate::model::limits::REORDER_MAX;
use crate::model::{Change, Chat, ChatEvent, ChatId, MessageId, Rev, Role, UserId};
use crate::wire::{EncodedEvent, ServerFrame};

/// The state of a subscription after an event arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// No event is missing.
    Settled,
    /// An event is missing.
    Gap,
}

#[derive(Debug)]
struct Follower {
    connection: Arc<Connection>,
    /// The revision of the chat in the connection's snapshot: it gets only later events.
    from: Rev,
    standing: Standing,
    /// The role of the connection's user. `None` before the snapshot is read.
    role: Option<Role>,
}

impl Follower {
    fn has_left(&self) -> bool {
        matches!(self.standing, Standing::Left(_))
    }
}

/// The membership of a follower's user, by the snapshot and the events so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The snapshot has not been read yet.
    Unknown,
    /// The user left at this revision. A newer snapshot may show that the user joined again.
    Left(Rev),
    /// An event of a join arrived before the snapshot was applied.
    Joined,
    /// The user is a member.
    Settled,
}

#[derive(Debug)]
pub struct ChatSubscription {
    /// The last revision delivered.
    rev: Rev,
    /// The last revision that exists, as far as events and the store have shown.
    seen: Rev,
    followers: Vec<Follower>,
    /// Events that arrived before an earlier event.
    waiting: BTreeMap<Rev, ChatEvent>,
    size: MembershipSize,
    /// Members of a channel above which ordinary members get counts instead of member events.
    events_max: i64,
    /// The last member event that the ordinary members did not get, until a count stands for it.
    uncounted: Option<Rev>,
    /// Whether a task is fetching the missing events.
    pub healing: bool,
}

impl ChatSubscription {
    /// A subscription without followers, delivered up to `rev`. In a channel of more than
    /// `events_max` members, ordinary members get counts instead of member events.
    pub fn delivered_up_to(rev: Rev, events_max: i64) -> Self {
        Self {
            rev,
            seen: rev,
            followers: Vec::new(),
            waiting: BTreeMap::new(),
            size: MembershipSize::default(),
            events_max,
            uncounted: None,
            healing: false,
        }
    }

    pub fn rev(&self) -> Rev {
        self.rev
    }

    pub fn seen(&self) -> Rev {
        self.seen
    }

    pub fn is_unfollowed(&self) -> bool {
        self.followers.is_empty()
    }

    pub fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.followers.iter().map(|follower| &follower.connection)
    }

    pub fn is_followed_by(&self, connection: &Connection) -> bool {
        self.connections().any(|follower| follower.id == connection.id)
    }

    /// Adds a follower whose snapshot has not been read yet.
    pub fn follow_ahead(&mut self, chat_id: ChatId, connection: &Arc<Connection>) {
        match self.find(connection) {
            // The event of a join has made the connection a follower.
            Some(follower) => follower.standing = Standing::Joined,
            None => self.add(chat_id, connection, Rev(0), Standing::Unknown, None),
        }
    }

    /// Applies a follower's snapshot, which contains the chat at a revision, or does not contain
    /// it. The follower stays if its user is a member by the later of the snapshot and the events.
    /// It gets the events after the snapshot.
    pub fn settle(
        &mut self,
        chat_id: ChatId,
        connection: &Arc<Connection>,
        snapshot: Option<Snapshot>,
    ) {
        if let Some(snapshot) = snapshot {
            self.size.update(snapshot.size);
            if snapshot.role.is_some_and(Role::leads) {
                // From now on the connection gets member events. So a later count must not stand
                // for the earlier ones.
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
        // An unregistered connection would never be removed from the followers.
        if connection.add_chat(chat_id) {
            self.followers.push(Follower { connection: connection.clone(), from, standing, role });
        }
    }

    pub fn unfollow(&mut self, connection: &Connection) {
        if let Some(index) =
            self.followers.iter().position(|follower| follower.connection.id == connection.id)
        {
            self.followers.swap_remove(index);
        }
    }

    /// Takes an event from the bus: delivers it, keeps it until the missing ones arrive, or drops
    /// it.
    pub fn accept(&mut self, event: ChatEvent, registry: &Registry) -> Accepted {
        mutant!(ArrivalOrder => return self.accept_any(event, registry));
        mutant!(DeliverTwice => if event.rev <= self.rev {
            return self.accept_any(event, registry);
        });

        self.expect_up_to(event.rev);
        if event.rev == self.rev.next() {
            self.deliver(event, registry);
            self.deliver_waiting(registry);
        } else if event.rev > self.rev && self.waiting.len() < REORDER_MAX {
            // Above the bound the event is dropped: healing fetches it with the missing ones.
            self.waiting.insert(event.rev, event);
        }

        if self.has_gap() { Accepted::Gap } else { Accepted::Settled }
    }

    /// Delivers changes that were fetched from the store, up to `rev`. `sent_earlier`: messages
    /// that changed after they were sent, with the revision by which they were sent.
    pub fn catch_up(
        &mut self,
        chat_id: ChatId,
        items: Vec<(Rev, Change)>,
        sent_earlier: &HashMap<MessageId, Rev>,
        size: MembershipSize,
        rev: Rev,
        registry: &Registry,
    ) {
        let known = self.rev;
        // A follower whose user joined in the gap must have left before, at a revision that the
        // store no longer has. It gets no events of the gap before the join, and is added again.
        for (rev, change) in items.iter().filter(|(rev, _)| *rev > known) {
            for user_id in change.joiners() {
                self.remove_member(chat_id, user_id, *rev);
            }
        }

        for (rev, change) in items {
            // Several changes may share a revision: the first members of a chat.
            if rev <= known {
                continue;
            }

            match &change {
                Change::MessageSent(message) if sent_earlier.contains_key(&message.id) => {
                    // A follower whose snapshot is newer has the message already. All followers
                    // have it if it was delivered while the store was read. Those that have it get
                    // the change, the others get the message as new.
                    let sent_rev = sent_earlier[&message.id];
                    let has_it =
                        |follower: &Follower| known >= sent_rev || follower.from >= sent_rev;
                    let changed = Change::of_message(message.clone(), true);
                    self.rev = rev;
                    self.broadcast(ChatEvent { chat_id, rev, change: changed }, has_it);
                    self.broadcast(ChatEvent { chat_id, rev, change }, |follower| {
                        !has_it(follower)
                    });
                }
                _ => self.deliver(ChatEvent { chat_id, rev, change }, registry),
            }
        }

        self.rev = self.rev.max(rev);
        // The store combines several changes of one member, so the count by changes may be wrong.
        self.size.update(size);
        self.expect_up_to(rev);
        self.deliver_waiting(registry);
    }

    /// Records that the revision `rev` exists.
    pub fn expect_up_to(&mut self, rev: Rev) {
        self.seen = self.seen.max(rev);
    }

    /// Drops events after `rev`, where the log ends: they were never committed.
    pub fn discard_beyond(&mut self, rev: Rev) {
        self.waiting.retain(|waiting, _| *waiting <= rev);
        self.seen = self.rev.max(rev);
    }

    /// Whether an existing revision was not delivered.
    pub fn has_gap(&self) -> bool {
        self.rev < self.seen
    }

    /// Ends the subscription of all followers: the chat was removed.
    pub fn end(&mut self, chat_id: ChatId) {
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        for follower in self.followers.drain(..) {
            // The maximum is later than the revision of any snapshot.
            follower.connection.push(
                Some(chat_id),
                Some(FramePosition::ChatGone(Rev(i64::MAX))),
                &frame,
            );
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
        self.size.apply(&event.change, rev);

        match &event.change {
            Change::Created(views) => {
                for (user_id, view) in views {
                    self.add_member(*user_id, view, rev, registry);
                }
            }
            Change::MemberJoined(joined) => {
                let (member, view) = (joined.0.clone(), joined.1.clone());
                self.broadcast(event, |_| true);
                if let Some(view) = view {
                    self.add_member(member.user.id, &view, rev, registry);
                }
            }
            Change::MemberLeft(user_id) => {
                self.remove_member(chat_id, *user_id, rev);
                self.broadcast(event, |_| true);
            }
            Change::MemberChanged(member) => {
                let (user_id, role) = (member.user.id, member.role);
                self.send_count(chat_id);
                for follower in
                    self.followers.iter_mut().filter(|it| it.connection.user_id == user_id)
                {
                    follower.role = Some(role);
                }
                self.broadcast(event, |_| true);
            }
            Change::Removed => self.end(chat_id),
            _ => self.broadcast(event, |_| true),
        }
    }

    /// Makes a new member's connections follow the chat, and sends each of them `chat_added` once.
    pub fn add_member(&mut self, user_id: UserId, view: &Chat, rev: Rev, registry: &Registry) {
        // A view that was read from the store may be newer than the event.
        let from = rev.max(view.rev);
        self.size.update(MembershipSize::of(view));

        let frame = ServerFrame::ChatAdded { chat: view.clone() }.encode();
        for connection in registry.streaming(user_id) {
            match self.find(&connection) {
                Some(follower) if matches!(follower.standing, Standing::Left(_)) => {
                    follower.standing = Standing::Joined;
                    follower.from = follower.from.max(from);
                    follower.role = view.role;
                }
                // The connection gets the events already.
                Some(_) => continue,
                None => self.add(view.id, &connection, from, Standing::Settled, view.role),
            }
            connection.push(Some(view.id), Some(FramePosition::ChatAdded(from)), &frame);
        }
    }

    /// Sends `chat_added` to a user's connections again. Their events continue from this view.
    pub fn add_again(&mut self, user_id: UserId, view: &Chat) {
        let frame = ServerFrame::ChatAdded { chat: view.clone() }.encode();
        for follower in
            self.followers.iter_mut().filter(|follower| follower.connection.user_id == user_id)
        {
            follower.from = follower.from.max(view.rev);
            // Without a position, so that it is sent also if the snapshot is newer: the chat may be
            // off the list there.
            follower.connection.push(Some(view.id), None, &frame);
        }
    }

    /// Ends the following of a former member's connections, except where a newer snapshot shows
    /// that the user is a member.
    fn remove_member(&mut self, chat_id: ChatId, user_id: UserId, rev: Rev) {
        mutant!(CachedMembership => return);
        let frame = ServerFrame::ChatGone { chat_id }.encode();
        self.followers.retain_mut(|follower| {
            if follower.connection.user_id != user_id || follower.from >= rev {
                return true;
            }
            follower.connection.push(Some(chat_id), Some(FramePosition::ChatGone(rev)), &frame);
            if follower.standing == Standing::Settled {
                follower.connection.remove_chat(chat_id);
                return false;
            }
            follower.standing = Standing::Left(rev);
            true
        });
    }

    /// Sends an event to the followers that do not have it yet and for which `meant` holds. In a
    /// large channel, a member event goes to the owner, the admins and the member only; the others
    /// get a count later.
    fn broadcast(&mut self, event: ChatEvent, meant: impl Fn(&Follower) -> bool) {
        let (chat_id, rev, member) = (event.chat_id, event.rev, event.change.member());
        if member.is_none() || !self.size.gets_counts(None, self.events_max) {
            // The count comes first: it stands for the revisions that ordinary members did not get.
            self.send_count(chat_id);
        }

        let Some(encoded) = EncodedEvent::new(event) else {
            return;
        };

        let (size, events_max) = (self.size, self.events_max);
        let is_counted = |follower: &Follower| {
            member.is_some_and(|member| member != follower.connection.user_id)
                && size.gets_counts(follower.role, events_max)
        };

        let mut delivered = 0;
        for follower in
            self.followers.iter().filter(|it| it.from < rev && !it.has_left() && meant(it))
        {
            if is_counted(follower) {
                self.uncounted = Some(rev);
                continue;
            }
            let frame = encoded.for_viewer(follower.connection.user_id);
            follower.connection.push(Some(chat_id), Some(FramePosition::Event(rev)), frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }

    /// Whether ordinary members did not get a member event since the last count.
    pub fn has_uncounted(&self) -> bool {
        self.uncounted.is_some()
    }

    /// Sends the number of members to the ordinary members of a large channel, if they did not get
    /// a member event since the last count.
    pub fn send_count(&mut self, chat_id: ChatId) {
        self.send_count_to(chat_id, |_| true);
        self.uncounted = None;
    }

    fn send_count_to(&self, chat_id: ChatId, meant: impl Fn(&Follower) -> bool) {
        let Some(rev) = self.uncounted else {
            return;
        };

        let member_count = self.size.member_count();
        let frame = ServerFrame::MemberCount { chat_id, rev, member_count }.encode();
        let mut delivered = 0;
        let leads = |follower: &Follower| follower.role.is_some_and(Role::leads);
        for follower in self
            .followers
            .iter()
            .filter(|it| it.from < rev && !it.has_left() && !leads(it) && meant(it))
        {
            follower.connection.push(Some(chat_id), Some(FramePosition::Event(rev)), &frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }
}

#[cfg(feature = "faults")]
mod mutants;
#[cfg(test)]
mod tests;
