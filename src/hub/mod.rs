//! The connections of this replica: which chats each of them follows, and how each event reaches
//! them once and in order.
//!
//! The bus may lose and reorder events; the hub must not. For each followed chat the hub keeps the
//! last revision that it delivered ([`subscription`]). It delivers the next revision, drops one
//! that it delivered before, and treats a jump as a gap: the missing events get a moment to arrive
//! and are then fetched from the store ([`heal`]). If the bus may have lost events, and no later
//! event shows a gap, the hub compares its chats with the store ([`resync`]). Each event is encoded
//! once and shared by all outboxes.

pub mod connection;
mod epoch;
mod heal;
mod membership_size;
mod one_at_a_time;
mod registry;
mod resync;
mod resync_queue;
mod subscription;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Arrival, Bus, BusInbox, TooMany};
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::limits::{
    DRAIN_WAVE_EVERY, HUB_RESYNC_EVERY, MEMBER_COUNT_EVERY, SESSION_CHECK_EVERY,
};
use crate::model::{ChatEvent, ChatId, Clock, Event, Rev, Topic, UserId};
use crate::presence::PresenceTracker;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::wire::ServerFrame;
pub use connection::{CloseReason, Connection};
pub use membership_size::{MembershipSize, Snapshot};
use one_at_a_time::OneAtATime;
use registry::Registry;
use resync::ResyncProgress;
use resync_queue::ResyncQueue;
use subscription::{Accepted, ChatSubscription};

/// Number of locks over which the subscriptions are spread, by chat.
const SHARDS: usize = 64;

/// Delivers events to the connections of one replica.
pub struct Hub {
    store: Store,
    bus: Arc<dyn Bus>,
    clock: Clock,
    registry: Registry,
    presence: Arc<PresenceTracker>,
    shards: Vec<Mutex<HashMap<ChatId, ChatSubscription>>>,
    /// Assigns chats to `shards`.
    spread: RandomState,
    tasks: Tasks,
    stop: CancellationToken,
    draining: CancellationToken,
    checking: Checks,
    /// Members of a channel above which ordinary members get counts instead of member events.
    channel_events_max: i64,
    /// Large channels with a member event that ordinary members did not get.
    uncounted: Mutex<HashSet<ChatId>>,
    resync_queue: ResyncQueue,
    resync_progress: ResyncProgress,
    /// Whether a task is comparing again chats that seem to be ahead of the store.
    rechecking_log: AtomicBool,
    /// The number of epoch changes so far. State that was read from the store before a change must
    /// not be used after it.
    generation: AtomicU64,
}

/// Comparisons with the store: at most one of each kind runs, and one more follows if it was
/// requested meanwhile.
#[derive(Default)]
struct Checks {
    chats: OneAtATime,
    sessions: OneAtATime,
}

impl Hub {
    /// A hub without connections. In a channel of more than `channel_events_max` members, ordinary
    /// members get the number of members instead of each member event. [`Hub::run`] must run.
    pub fn new(
        store: Store,
        bus: Arc<dyn Bus>,
        presence: Arc<PresenceTracker>,
        clock: Clock,
        tasks: Tasks,
        channel_events_max: i64,
    ) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (registry, spread, draining) =
            (Registry::new(bus.clone()), RandomState::new(), CancellationToken::new());
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
            resync_queue: ResyncQueue::default(),
            resync_progress: ResyncProgress::default(),
            rechecking_log: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        })
    }

    /// Delivers the events that arrive on the bus, and resyncs every 30 s, until the hub is
    /// stopped.
    pub async fn run(self: Arc<Self>, mut inbox: BusInbox) {
        self.tasks.spawn_vital("epoch", self.clone().keep_epoch());

        let mut resync = slow_interval(HUB_RESYNC_EVERY);
        let mut session_check = slow_interval(SESSION_CHECK_EVERY);
        let mut count = slow_interval(MEMBER_COUNT_EVERY);

        loop {
            let arrival = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = resync.tick() => {
                    self.full_resync_step_later();
                    Some(Arrival::ResyncAll)
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
                Some(Arrival::Resync(topics)) => self.resync_topics(topics),
                Some(Arrival::ResyncAll) => {
                    self.presence.resync_all_soon();
                    self.resync_all();
                }
                None => return,
            }
        }
    }

    /// Delivers one event to the connections for which it is meant.
    pub fn deliver(self: &Arc<Self>, event: Event) {
        match event {
            Event::Chat(event) => self.deliver_chat_event(event),
            Event::Read { chat_id, user_id, message_id, to_all } => {
                let frame = ServerFrame::Read { chat_id, user_id, message_id }.encode();
                self.deliver_passing(chat_id, &frame, |connection| {
                    to_all || connection.user_id == user_id
                });
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
            Event::SessionsEnded(_) | Event::LoggedInAgain { .. }
                if faults::on(Mutant::RevokeWithoutClosing) => {}
            Event::SessionsEnded(sessions) => {
                for connection in self.registry.of_sessions(&sessions) {
                    connection.close(CloseReason::SessionEnded);
                }
            }
            Event::LoggedInAgain { session_id, logins } => {
                for connection in self.registry.of_sessions(&[session_id]) {
                    if !connection.is_of_current_login(Some(logins)) {
                        connection.close(CloseReason::SessionEnded);
                    }
                }
            }
            Event::Presence(user_id) => self.presence.resync_soon(user_id),
            Event::Resync(topics) => self.resync_repeatedly(topics),
        }
    }

    fn deliver_chat_event(self: &Arc<Self>, event: ChatEvent) {
        let chat_id = event.chat_id;
        let mut subscriptions = self.subscriptions(chat_id);
        let unknown = !subscriptions.contains_key(&chat_id);
        if unknown {
            // No connection follows the chat. A user that joins by this event may be connected, and
            // follows it from now on.
            let joiner_here = event.change.joiners().any(|user_id| self.registry.has_user(user_id));
            if !joiner_here {
                return;
            }
        }

        let subscription = self.open(&mut subscriptions, chat_id, Rev(event.rev.0 - 1));
        // A subscription that other followers began at a later revision drops this join as
        // delivered. Its connected joiners have to be added from the store.
        let late = event.change.joiners().filter(|_| event.rev <= subscription.rev());
        let unfollowing = |user_id: &UserId| {
            self.registry.streaming(*user_id).iter().any(|it| !subscription.is_followed_by(it))
        };
        let not_following: Vec<UserId> = late.filter(unfollowing).collect();

        let accepted = subscription.accept(event, &self.registry);
        self.count_later(chat_id, subscription);
        let followed = !self.close_if_unfollowed(&mut subscriptions, chat_id);
        drop(subscriptions);

        for user_id in not_following {
            self.follow_as_member_later(chat_id, user_id);
        }
        if accepted == Accepted::Gap {
            self.heal_later(chat_id, None, "gap");
        } else if unknown && followed {
            // A later event may have arrived before, when the chat had no follower, and was
            // dropped.
            self.check_later(chat_id);
        }
    }

    /// Has the next tick send a count to the ordinary members of a large channel, if they missed a
    /// member event.
    fn count_later(&self, chat_id: ChatId, subscription: &ChatSubscription) {
        if subscription.has_uncounted() {
            self.uncounted.lock().insert(chat_id);
        }
    }

    fn send_counts(&self) {
        let chats = std::mem::take(&mut *self.uncounted.lock());
        for chat_id in chats {
            if let Some(subscription) = self.subscriptions(chat_id).get_mut(&chat_id) {
                subscription.send_count(chat_id);
            }
        }
    }

    /// Sends a frame without a revision to the followers of a chat for which `to` holds.
    fn deliver_passing(
        &self,
        chat_id: ChatId,
        frame: &bytes::Bytes,
        to: impl Fn(&Connection) -> bool,
    ) {
        let subscriptions = self.subscriptions(chat_id);
        let Some(subscription) = subscriptions.get(&chat_id) else {
            return;
        };

        let mut delivered = 0;
        for connection in subscription.connections().filter(|connection| to(connection)) {
            connection.push(Some(chat_id), None, frame);
            delivered += 1;
        }
        metrics::events_delivered(delivered);
    }

    /// Registers an authenticated connection. From now on the hub closes it when its session ends.
    ///
    /// # Errors
    /// `TooManyConnections` if the user has `per_user_max` connections on all replicas together;
    /// `Restarting` once the hub drains.
    pub async fn register(
        &self,
        connection: &Arc<Connection>,
        per_user_max: usize,
    ) -> Result<(), CloseReason> {
        let entered = self.presence.enter(connection.user_id, per_user_max).await;
        entered.map_err(|TooMany| CloseReason::TooManyConnections)?;

        self.registry.add(connection);

        // Checked after the connection was added: either the drain finds the connection in the
        // registry, or this check sees that the hub drains.
        if self.draining.is_cancelled() {
            self.registry.remove(connection);
            self.presence.leave(connection.user_id);
            return Err(CloseReason::Restarting);
        }

        metrics::socket_opened();
        Ok(())
    }

    /// The presence of this replica's users, and of the users that they watch.
    pub fn presence(&self) -> &Arc<PresenceTracker> {
        &self.presence
    }

    /// Removes a connection and its subscriptions.
    pub fn unregister(&self, connection: &Arc<Connection>) {
        self.registry.remove(connection);
        self.presence.leave(connection.user_id);
        self.presence.unwatch_all(connection.id);

        for chat_id in connection.leave() {
            let mut subscriptions = self.subscriptions(chat_id);
            if let Some(subscription) = subscriptions.get_mut(&chat_id) {
                subscription.unfollow(connection);
                self.close_if_unfollowed(&mut subscriptions, chat_id);
            }
        }

        metrics::socket_closed();
    }

    /// Makes a connection follow chats before their snapshot is read. Each chat comes with a
    /// revision that it has reached. The connection must be holding back its frames:
    /// [`Hub::settle`] and [`Connection::go_live`] decide later which frames are newer than the
    /// snapshot.
    pub fn follow(&self, connection: &Arc<Connection>, chats: &[(ChatId, Rev)]) {
        for (chat_id, rev) in chats {
            let mut subscriptions = self.subscriptions(*chat_id);
            self.open(&mut subscriptions, *chat_id, *rev).follow_ahead(*chat_id, connection);
            self.close_if_unfollowed(&mut subscriptions, *chat_id);
        }
    }

    /// Applies the state of a chat in the connection's snapshot, which was read after
    /// [`Hub::follow`]: the connection gets the events after that revision. If the snapshot does
    /// not contain the chat, the connection gets no events, unless the user joined since.
    pub fn settle(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        chat_id: ChatId,
        snapshot: Option<Snapshot>,
    ) {
        let mut subscriptions = self.subscriptions(chat_id);
        let Some(subscription) = subscriptions.get_mut(&chat_id) else {
            return;
        };

        subscription.settle(chat_id, connection, snapshot);
        let behind = snapshot.map(|snapshot| snapshot.rev).filter(|rev| subscription.rev() < *rev);
        self.close_if_unfollowed(&mut subscriptions, chat_id);
        drop(subscriptions);

        if behind.is_some() {
            // The missing event is under way, or was published before this replica followed the
            // chat.
            self.heal_later(chat_id, behind, "sync");
        }
    }

    /// Closes every connection, a few at a time over `spread`, so that the returning clients do not
    /// overload the other replicas. New connections are refused.
    pub async fn drain(&self, spread: Duration) {
        self.draining.cancel();

        let all = self.registry.all();
        let waves_max = usize::try_from(spread.as_millis() / DRAIN_WAVE_EVERY.as_millis())
            .unwrap_or(usize::MAX)
            .max(1);
        // Without this bound, few connections would be spread over many empty waves.
        let waves = waves_max.min(all.len());

        for wave in 0..waves {
            for connection in &all[all.len() * wave / waves..all.len() * (wave + 1) / waves] {
                let after_ms = rand::rng()
                    .random_range(0..=u64::try_from(spread.as_millis()).unwrap_or(0).min(1000));
                connection.push_always(&ServerFrame::Reconnect { after_ms }.encode());
                connection.close(CloseReason::Restarting);
            }
            if waves_max > 1 {
                tokio::time::sleep(DRAIN_WAVE_EVERY).await;
            }
        }
    }

    /// Waits until [`Hub::drain`] begins.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// The number of authenticated connections.
    pub fn connections(&self) -> usize {
        self.registry.all().len()
    }

    /// Returns the subscription to a chat. A new one counts as delivered up to `rev`, and follows
    /// the chat's topic on the bus.
    fn open<'a>(
        &self,
        subscriptions: &'a mut HashMap<ChatId, ChatSubscription>,
        chat_id: ChatId,
        rev: Rev,
    ) -> &'a mut ChatSubscription {
        subscriptions.entry(chat_id).or_insert_with(|| {
            self.bus.follow(Topic::Chat(chat_id));
            ChatSubscription::delivered_up_to(rev, self.channel_events_max)
        })
    }

    /// Removes the subscription to a chat if it has no followers. Returns whether it did.
    fn close_if_unfollowed(
        &self,
        subscriptions: &mut HashMap<ChatId, ChatSubscription>,
        chat_id: ChatId,
    ) -> bool {
        let unfollowed = subscriptions.get(&chat_id).is_some_and(ChatSubscription::is_unfollowed);
        if unfollowed {
            subscriptions.remove(&chat_id);
            self.bus.unfollow(Topic::Chat(chat_id));
        }
        unfollowed
    }

    /// Locks the subscriptions of the shard that has this chat.
    fn subscriptions(&self, chat_id: ChatId) -> MutexGuard<'_, HashMap<ChatId, ChatSubscription>> {
        let mut hasher = self.spread.build_hasher();
        hasher.write_u128(chat_id.0.as_u128());
        let shard = usize::try_from(hasher.finish()).unwrap_or(0) % SHARDS;
        self.shards[shard].lock()
    }
}

/// An interval that delays missed ticks rather than making up for them in a burst.
fn slow_interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
