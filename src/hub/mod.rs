//! This replica's sockets: which connection follows which chat, and how an event reaches each of them once, in order.
//!
//! The bus may lose and reorder; the hub may not. Per followed chat it knows the last revision it delivered: the next
//! one is delivered, a seen one dropped, and a jump means that something is missing. What is missing is given a moment
//! to arrive, then fetched from the store ([`heal`]). Each event is encoded once and shared by all outboxes.

pub mod connection;
mod crowd;
mod feed;
pub mod frame;
mod heal;
mod look;
mod one_at_a_time;
mod registry;
mod resync;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Arrival, Bus, BusInbox, TooMany};
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::limits::{DRAIN_WAVE_EVERY, HUB_CHECK_EVERY, MEMBER_COUNT_EVERY, SESSION_CHECK_EVERY};
use crate::model::{ChatEvent, ChatId, Clock, Event, Rev, Topic, UserId};
use crate::presence::PresenceTracker;
use crate::store::Store;
use crate::tasks::Tasks;
pub use connection::{CloseReason, Connection};
pub use crowd::{Crowd, Snapshot};
use feed::{Accepted, Feed};
pub use frame::ServerFrame;
use look::Looked;
use one_at_a_time::OneAtATime;
use registry::Registry;
use resync::Doubts;

/// Locks that the followed chats are spread over.
const SHARDS: usize = 64;

/// The registry of subscribers of one replica.
pub struct Hub {
    store: Store,
    bus: Arc<dyn Bus>,
    clock: Clock,
    registry: Registry,
    presence: Arc<PresenceTracker>,
    shards: Vec<Mutex<HashMap<ChatId, Feed>>>,
    spread: RandomState,
    tasks: Tasks,
    stop: CancellationToken,
    draining: CancellationToken,
    checking: Checks,
    /// Members of a channel above which ordinary members get counts instead of member events.
    channel_events_max: i64,
    /// Large channels whose members wait for a count.
    uncounted: Mutex<HashSet<ChatId>>,
    doubts: Doubts,
    looked: Looked,
    /// Grows with each new epoch of the log: what was read before is of no use after.
    generation: AtomicU64,
}

/// Comparisons with the store: one of each kind at a time, and once more if it was asked for meanwhile.
#[derive(Default)]
struct Checks {
    chats: OneAtATime,
    sessions: OneAtATime,
}

impl Hub {
    /// A hub without connections. In a channel of more than `channel_events_max` members the ordinary ones get the number
    /// of members instead of each member event.
    pub fn new(
        store: Store,
        bus: Arc<dyn Bus>,
        presence: Arc<PresenceTracker>,
        clock: Clock,
        tasks: Tasks,
        channel_events_max: i64,
    ) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (registry, spread, draining) = (Registry::new(bus.clone()), RandomState::new(), CancellationToken::new());
        let stop = tasks.stop_token();
        Arc::new(Self {
            store,
            bus,
            clock,
            registry,
            presence,
            shards,
            spread,
            tasks,
            stop,
            draining,
            checking: Checks::default(),
            channel_events_max,
            uncounted: Mutex::default(),
            doubts: Doubts::default(),
            looked: Looked::default(),
            generation: AtomicU64::new(0),
        })
    }

    /// Delivers what arrives on the bus, and checks all chats now and then, until the hub is stopped.
    pub async fn run(self: Arc<Self>, mut inbox: BusInbox) {
        self.tasks.spawn_vital("epoch", self.clone().keep_epoch());
        let mut check = slow_interval(HUB_CHECK_EVERY);
        let mut session_check = slow_interval(SESSION_CHECK_EVERY);
        let mut count = slow_interval(MEMBER_COUNT_EVERY);
        loop {
            let arrival = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = check.tick() => {
                    self.belt_later();
                    Some(Arrival::Lost)
                }
                _ = session_check.tick() => {
                    self.check_sessions_now();
                    continue;
                }
                _ = count.tick() => {
                    self.send_counts();
                    continue;
                }
                arrival = inbox.next() => arrival,
            };
            match arrival {
                Some(Arrival::Event(event)) => self.deliver(event),
                Some(Arrival::Look(topics)) => self.look_at(topics),
                Some(Arrival::Lost) => {
                    self.presence.resync_all_soon();
                    self.check_all_now();
                }
                None => return,
            }
        }
    }

    /// Hands one event to those it concerns.
    pub fn deliver(self: &Arc<Self>, event: Event) {
        match event {
            Event::Chat(event) => self.deliver_chat_event(event),
            Event::Read { chat_id, user_id, message_id, to_all } => {
                let frame = ServerFrame::Read { chat_id, user_id, message_id }.encode();
                self.deliver_passing(chat_id, &frame, |connection| to_all || connection.user_id == user_id);
            }
            Event::Typing { chat_id, user_id } => {
                let frame = ServerFrame::Typing { chat_id, user_id }.encode();
                self.deliver_passing(chat_id, &frame, |connection| connection.user_id != user_id);
            }
            Event::ChatGone { chat_id, user_id } => {
                let frame = ServerFrame::ChatGone { chat_id }.encode();
                self.deliver_passing(chat_id, &frame, |connection| connection.user_id == user_id);
            }
            Event::ChatBack { chat_id, user_id } => self.add_again_later(chat_id, user_id),
            Event::SessionsEnded(_) | Event::LoggedInAgain { .. } if faults::on(Mutant::RevokeWithoutClosing) => {}
            Event::SessionsEnded(sessions) => {
                for connection in self.registry.of_sessions(&sessions) {
                    connection.close(CloseReason::SessionEnded);
                }
            }
            Event::LoggedInAgain { session_id, logins } => {
                for connection in self.registry.of_sessions(&[session_id]) {
                    if !connection.is_of(Some(logins)) {
                        connection.close(CloseReason::SessionEnded);
                    }
                }
            }
            Event::Presence(user_id) => self.presence.resync_soon(user_id),
            Event::Resync(topics) => self.resync(topics),
        }
    }

    fn deliver_chat_event(self: &Arc<Self>, event: ChatEvent) {
        let chat_id = event.chat_id;
        let mut feeds = self.feeds(chat_id);
        let unknown = !feeds.contains_key(&chat_id);
        if unknown {
            // Nobody here follows it; but who just joined may be connected here, and follows it from now on.
            let joiner_here = event.change.joiners().any(|user_id| self.registry.has_user(user_id));
            if !joiner_here {
                return;
            }
        }
        let feed = self.open(&mut feeds, chat_id, Rev(event.rev.0 - 1));
        // The feed may have begun, for others, beyond the join of somebody who is connected here.
        let late = event.change.joiners().filter(|_| event.rev <= feed.rev());
        let unfollowing =
            |user_id: &UserId| self.registry.streaming(*user_id).iter().any(|it| !feed.is_followed_by(it));
        let missed: Vec<UserId> = late.filter(unfollowing).collect();
        let accepted = feed.accept(event, &self.registry);
        self.count_later(chat_id, feed);
        let followed = !self.close_if_unfollowed(&mut feeds, chat_id);
        drop(feeds);
        for user_id in missed {
            self.take_in_later(chat_id, user_id);
        }
        if accepted == Accepted::Gap {
            self.heal_later(chat_id, None, "gap");
        } else if unknown && followed {
            // A later event may have come first, when nobody was here to take it.
            self.check_later(chat_id);
        }
    }

    /// Has the members of a large channel get a count with the next tick, if they wait for one.
    fn count_later(&self, chat_id: ChatId, feed: &Feed) {
        if feed.has_uncounted() {
            self.uncounted.lock().insert(chat_id);
        }
    }

    fn send_counts(&self) {
        let chats = std::mem::take(&mut *self.uncounted.lock());
        for chat_id in chats {
            if let Some(feed) = self.feeds(chat_id).get_mut(&chat_id) {
                feed.send_count(chat_id);
            }
        }
    }

    /// Hands a passing frame to some of a chat's followers.
    fn deliver_passing(&self, chat_id: ChatId, frame: &bytes::Bytes, to: impl Fn(&Connection) -> bool) {
        let feeds = self.feeds(chat_id);
        let Some(feed) = feeds.get(&chat_id) else {
            return;
        };
        let mut delivered = 0;
        for connection in feed.connections().filter(|connection| to(connection)) {
            connection.push(Some(chat_id), None, frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }

    /// Takes in an authenticated connection. From now on it closes when its session ends.
    ///
    /// # Errors
    /// Refuses the connection over `per_user_max` on all replicas, and every one once the hub drains.
    pub async fn register(&self, connection: &Arc<Connection>, per_user_max: usize) -> Result<(), CloseReason> {
        let entered = self.presence.enter(connection.user_id, per_user_max).await;
        entered.map_err(|TooMany| CloseReason::TooManyConnections)?;

        self.registry.add(connection);
        // Looked at after it was added: either the drain finds it, or it finds the drain.
        if self.draining.is_cancelled() {
            self.registry.remove(connection);
            self.presence.leave(connection.user_id);
            return Err(CloseReason::Restarting);
        }
        metrics::socket_opened();
        Ok(())
    }

    /// The presence of this replica's users, and of those that they watch.
    pub fn presence(&self) -> &Arc<PresenceTracker> {
        &self.presence
    }

    /// Forgets a connection.
    pub fn unregister(&self, connection: &Arc<Connection>) {
        self.registry.remove(connection);
        self.presence.leave(connection.user_id);
        self.presence.unwatch_all(connection.id);
        for chat_id in connection.leave() {
            let mut feeds = self.feeds(chat_id);
            if let Some(feed) = feeds.get_mut(&chat_id) {
                feed.unfollow(connection);
                self.close_if_unfollowed(&mut feeds, chat_id);
            }
        }
        metrics::socket_closed();
    }

    /// Makes a connection follow chats before their snapshot is read, each known to have reached a revision. It must be
    /// holding back its frames: what arrives meanwhile is kept until [`Hub::settle`] and [`Connection::go_live`] say
    /// what of it is new.
    pub fn follow(&self, connection: &Arc<Connection>, chats: &[(ChatId, Rev)]) {
        for (chat_id, rev) in chats {
            let mut feeds = self.feeds(*chat_id);
            self.open(&mut feeds, *chat_id, *rev).follow_ahead(*chat_id, connection);
            self.close_if_unfollowed(&mut feeds, *chat_id);
        }
    }

    /// Tells the hub what the connection's snapshot, read after [`Hub::follow`], held of a chat: it gets what comes after
    /// that revision; or nothing, where it did not hold the chat and no later event brought it.
    pub fn settle(self: &Arc<Self>, connection: &Arc<Connection>, chat_id: ChatId, snapshot: Option<Snapshot>) {
        let mut feeds = self.feeds(chat_id);
        let Some(feed) = feeds.get_mut(&chat_id) else {
            return;
        };
        feed.settle(chat_id, connection, snapshot);
        let behind = snapshot.map(|snapshot| snapshot.rev).filter(|rev| feed.rev() < *rev);
        self.close_if_unfollowed(&mut feeds, chat_id);
        drop(feeds);
        if behind.is_some() {
            // Either on its way, or published before anybody here followed the chat.
            self.heal_later(chat_id, behind, "sync");
        }
    }

    /// Sends every connection elsewhere, a few at a time over `spread`, so that the other replicas are not run down. No
    /// new one is taken in.
    pub async fn drain(&self, spread: Duration) {
        self.draining.cancel();
        let all = self.registry.all();
        let waves_max = usize::try_from(spread.as_millis() / DRAIN_WAVE_EVERY.as_millis()).unwrap_or(usize::MAX).max(1);
        // Few go one a wave; many as evenly as they divide, for as long as was said.
        let waves = waves_max.min(all.len());
        for wave in 0..waves {
            for connection in &all[all.len() * wave / waves..all.len() * (wave + 1) / waves] {
                let after_ms = rand::rng().random_range(0..=u64::try_from(spread.as_millis()).unwrap_or(0).min(1000));
                connection.push_always(&ServerFrame::Reconnect { after_ms }.encode());
                connection.close(CloseReason::Restarting);
            }
            if waves_max > 1 {
                tokio::time::sleep(DRAIN_WAVE_EVERY).await;
            }
        }
    }

    /// Waits until the connections are asked to go.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Authenticated connections now.
    pub fn connections(&self) -> usize {
        self.registry.all().len()
    }

    /// The feed of a chat; a new one counts as delivered up to `rev`, and asks the bus for the chat's events.
    fn open<'a>(&self, feeds: &'a mut HashMap<ChatId, Feed>, chat_id: ChatId, rev: Rev) -> &'a mut Feed {
        feeds.entry(chat_id).or_insert_with(|| {
            self.bus.follow(Topic::Chat(chat_id));
            Feed::delivered_up_to(rev, self.channel_events_max)
        })
    }

    /// Forgets the feed of a chat that nobody here follows any more. Whether it did.
    fn close_if_unfollowed(&self, feeds: &mut HashMap<ChatId, Feed>, chat_id: ChatId) -> bool {
        let unfollowed = feeds.get(&chat_id).is_some_and(Feed::is_unfollowed);
        if unfollowed {
            feeds.remove(&chat_id);
            self.bus.unfollow(Topic::Chat(chat_id));
        }
        unfollowed
    }

    fn feeds(&self, chat_id: ChatId) -> MutexGuard<'_, HashMap<ChatId, Feed>> {
        let mut hasher = self.spread.build_hasher();
        hasher.write_u128(chat_id.0.as_u128());
        let shard = usize::try_from(hasher.finish()).unwrap_or(0) % SHARDS;
        self.shards[shard].lock()
    }
}

/// An interval that makes no haste after a stall.
fn slow_interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
