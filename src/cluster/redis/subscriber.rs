//! The receiving side of the bus over Redis: one subscribed connection.
//!
//! When the connection breaks, or the replica no longer receives the canaries that it publishes to
//! itself, the subscriber opens another connection, subscribes again, and has the hub compare all
//! changed chats with the store. Without a connection, the hub compares every second: events are
//! late, but none is lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bb8_redis::redis::{PushInfo, PushKind, Value};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::address::RedisAddress;
use super::channel::{Channel, Subscribed};
use super::dirty::DirtyTopics;
use super::health::{BusHealth, CANARY_EVERY};
use super::link::{Link, Redis};
use super::replica_id::ReplicaId;
use super::seal::{BUS_CONTEXT, ClusterKey};
use crate::cluster::Arrival;
use crate::cluster::bus::BusSender;
use crate::metrics;
use crate::model::faults::{self, Mutant, mutant};
use crate::model::limits::{BUS_RECEIVED_TOPICS_MAX, BUS_UNREADABLE_PAUSE};
use crate::model::{Clock, Event, PresentEpoch, Topic};
use crate::wire::bus::{BusKind, BusMessage};

/// Channels in one `SUBSCRIBE`.
const SUBSCRIBE_BATCH: usize = 512;
/// Time without a canary of its own after which a replica closes its connection.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// Deadline of one `SUBSCRIBE` or `UNSUBSCRIBE`.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(3);
/// Pause between two resyncs while there is no connection.
const OFFLINE_RESYNC_EVERY: Duration = Duration::from_secs(1);

/// Keeps a connection that is subscribed to the topics that the hub follows.
pub(super) struct Subscriber {
    own: ReplicaId,
    key: ClusterKey,
    clock: Clock,
    redis: Arc<Redis>,
    address: RedisAddress,
    epoch: PresentEpoch,
    inbox: BusSender,
    health: Arc<BusHealth>,
    /// The topics that the hub follows.
    wanted: Mutex<HashSet<Topic>>,
    /// Topics that the hub began or ceased to follow since the subscriptions were last adjusted.
    changed: Mutex<HashSet<Topic>>,
    /// Notified after each change of `changed`.
    change: Notify,
    /// Topics of messages too old to be delivered. Resynced together once a second, so that a flood
    /// of replayed messages costs one comparison a second.
    stale: Mutex<DirtyTopics>,
    /// Topics of events that this version cannot read. Resynced at once, and together with those
    /// that arrive within [`BUS_UNREADABLE_PAUSE`] after.
    unreadable: Mutex<DirtyTopics>,
    unreadable_arrived: Notify,
}

impl Subscriber {
    pub(super) fn new(
        (own, key): (ReplicaId, ClusterKey),
        clock: Clock,
        redis: Arc<Redis>,
        address: RedisAddress,
        epoch: PresentEpoch,
        inbox: BusSender,
        health: Arc<BusHealth>,
    ) -> Arc<Self> {
        Arc::new(Self {
            own,
            key,
            clock,
            redis,
            address,
            epoch,
            inbox,
            health,
            wanted: Mutex::new(HashSet::from([Topic::Everyone])),
            changed: Mutex::default(),
            change: Notify::new(),
            stale: Mutex::new(DirtyTopics::new("stale", BUS_RECEIVED_TOPICS_MAX)),
            unreadable: Mutex::new(DirtyTopics::new("unreadable", BUS_RECEIVED_TOPICS_MAX)),
            unreadable_arrived: Notify::new(),
        })
    }

    /// Subscribes to a topic soon.
    pub(super) fn follow(&self, topic: Topic) {
        self.wanted.lock().insert(topic);
        self.changed.lock().insert(topic);
        self.change.notify_one();
    }

    /// Ends the subscription to a topic soon.
    pub(super) fn unfollow(&self, topic: Topic) {
        self.wanted.lock().remove(&topic);
        self.changed.lock().insert(topic);
        self.change.notify_one();
    }

    /// Opens connections, one after the other, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tries = 0_u32;
        while !stop.is_cancelled() {
            let start = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.serve_connection() => {}
            }

            self.health.disconnected();
            self.resync_all();
            metrics::bus_reconnect();

            // A connection that lasted resets the back-off.
            tries = if start.elapsed() > SILENCE_MAX { 0 } else { (tries + 1).min(5) };
            let pause = rand::rng().random_range(20..=50_u64 << tries);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
                () = self.resync_while_offline() => {}
            }
        }
    }

    /// Causes a resync every second: without a connection, the store is the only source of other
    /// replicas' changes. Never ends.
    async fn resync_while_offline(&self) {
        loop {
            tokio::time::sleep(OFFLINE_RESYNC_EVERY).await;
            self.inbox.send(Arrival::ResyncAll);
        }
    }

    /// Opens a connection, subscribes, and serves the connection until it ends.
    async fn serve_connection(self: &Arc<Self>) {
        let disconnected = Arc::new(Notify::new());
        let Some(mut link) = self.connect(&disconnected).await else {
            return;
        };

        let opened_at_ms = self.health.now_ms();
        let mut subscribed = Subscribed::default();
        if !self.subscribe_to_all(&mut link, &mut subscribed).await {
            return;
        }
        // Only now: an event that Redis published before it confirmed the subscriptions is found by
        // this comparison, a later one arrives.
        self.resync_all();
        self.health.connected();

        let mut timer = tokio::time::interval(CANARY_EVERY / 2);
        loop {
            tokio::select! {
                () = disconnected.notified() => return,
                _ = timer.tick() => {
                    self.resync_stale();
                    if self.health.silence_since(opened_at_ms) > SILENCE_MAX {
                        metrics::bus_canary_timeout();
                        return;
                    }
                }
                () = self.change.notified() => {
                    if !self.adjust_subscriptions(&mut link, &mut subscribed).await {
                        return;
                    }
                }
            }
        }
    }

    /// Opens a connection whose messages go to [`Self::receive`].
    async fn connect(self: &Arc<Self>, disconnected: &Arc<Notify>) -> Option<Link> {
        let push = {
            let (subscriber, disconnected) = (self.clone(), disconnected.clone());
            move |info: PushInfo| -> Result<(), ()> {
                subscriber.receive(&info, &disconnected);
                Ok(())
            }
        };

        tokio::select! {
            link = Link::open(&self.address, Some(push)) => link.ok(),
            () = self.resync_while_offline() => None,
        }
    }

    /// Makes the hub compare everything with the store.
    fn resync_all(&self) {
        mutant!(NoResubscribe => return);
        self.inbox.send(Arrival::ResyncAll);
    }

    /// Subscribes a new connection to the canary and to all wanted topics. Returns whether the
    /// connection still works.
    async fn subscribe_to_all(&self, link: &mut Link, subscribed: &mut Subscribed) -> bool {
        let all: Vec<Topic> = {
            // Cleared before `wanted` is read: a topic that is followed later stays in `changed`.
            self.changed.lock().clear();
            self.wanted.lock().iter().copied().collect()
        };
        let all = faults::choose(Mutant::NoResubscribe, all, vec![Topic::Everyone]);

        let canary = self.redis.key("canary", &self.own.to_string());
        in_time(link.subscribe(vec![canary])).await && self.subscribe(link, &all, subscribed).await
    }

    /// Subscribes to the topics that are wanted now, and unsubscribes from the others. Returns
    /// whether the connection still works.
    async fn adjust_subscriptions(&self, link: &mut Link, subscribed: &mut Subscribed) -> bool {
        let changed = std::mem::take(&mut *self.changed.lock());
        let (add, remove): (Vec<Topic>, Vec<Topic>) = {
            let wanted = self.wanted.lock();
            changed
                .into_iter()
                .filter(|it| wanted.contains(it) != subscribed.contains(it))
                .partition(|it| wanted.contains(it))
        };

        for batch in subscribed.remove(remove).chunks(SUBSCRIBE_BATCH) {
            if !in_time(link.unsubscribe(self.names(batch))).await {
                return false;
            }
        }

        let done = self.subscribe(link, &add, subscribed).await;
        if done && !add.is_empty() {
            self.inbox.send(Arrival::Resync(add));
        }
        done
    }

    async fn subscribe(
        &self,
        link: &mut Link,
        topics: &[Topic],
        subscribed: &mut Subscribed,
    ) -> bool {
        for batch in subscribed.add(topics.iter().copied()).chunks(SUBSCRIBE_BATCH) {
            if !in_time(link.subscribe(self.names(batch))).await {
                return false;
            }
        }
        true
    }

    fn names(&self, channels: &[Channel]) -> Vec<String> {
        channels.iter().map(|channel| channel.name(self.redis.prefix())).collect()
    }

    /// Receives a push message. Runs on the connection's own task, so it must not wait: Redis
    /// disconnects a subscriber that reads slowly.
    fn receive(&self, info: &PushInfo, disconnected: &Notify) {
        match info.kind {
            PushKind::Message | PushKind::SMessage => {
                if let Some(Value::BulkString(sealed)) = info.data.get(1) {
                    self.receive_sealed(sealed);
                }
            }
            PushKind::Disconnection => disconnected.notify_one(),
            _ => {}
        }
    }

    fn receive_sealed(&self, sealed: &[u8]) {
        let Some(body) = self.key.open(BUS_CONTEXT, sealed) else {
            metrics::bus_forged();
            return;
        };
        let Some(message) = BusMessage::read(body) else {
            // A replica of a version before 1 sealed it. Its topics are unknown.
            metrics::bus_unreadable();
            self.stale.lock().add(Topic::Everyone);
            return;
        };

        let header = &message.header;
        if header.is_stale(self.clock.now()) {
            metrics::bus_stale();
            self.add_wanted(&self.stale, &header.topics);
            return;
        }

        let own = header.from == self.own.0;
        match header.kind {
            BusKind::Canary if own => self.health.canary_received(),
            BusKind::Canary => {}
            // This replica's own messages reached its hub directly.
            _ if own && !faults::on(Mutant::DeliverTwice) => {}
            BusKind::Resync => self.inbox.send(Arrival::resync(message.header.topics)),
            BusKind::OutcomeUnknown => {
                self.inbox.send(Arrival::Event(Event::Resync(message.header.topics)));
            }
            BusKind::Event | BusKind::Unknown => self.receive_event(message),
        }
    }

    fn receive_event(&self, message: BusMessage<'_>) {
        let event = message.event();
        let BusMessage { header, .. } = message;

        match event {
            None => {
                metrics::bus_unreadable();
                self.add_wanted(&self.unreadable, &header.topics);
                self.unreadable_arrived.notify_one();
            }
            // The publisher has another epoch of the log than this replica. The store has the
            // present one.
            Some(Event::Chat(_)) if header.epoch.is_some_and(|epoch| epoch != self.epoch.get()) => {
                self.inbox.send(Arrival::Resync(header.topics));
            }
            Some(event) => self.inbox.send(Arrival::Event(event)),
        }
    }

    /// Adds the topics that the hub follows. A channel also carries topics that the hub does not
    /// follow.
    fn add_wanted(&self, dirty: &Mutex<DirtyTopics>, topics: &[Topic]) {
        let wanted = self.wanted.lock();
        let mut dirty = dirty.lock();
        for topic in topics.iter().filter(|topic| wanted.contains(topic)) {
            dirty.add(*topic);
        }
    }

    fn resync_stale(&self) {
        let resync = self.stale.lock().take();
        if let Some(resync) = resync {
            self.inbox.send(resync);
        }
    }

    /// Has the hub resync the topics of unreadable events as they arrive, until `stop`. Runs as a
    /// task of its own, since the task of the connection may be waiting for a subscription.
    pub(super) async fn resync_unreadable(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.unreadable_arrived.notified() => {}
            }

            let resync = self.unreadable.lock().take();
            if let Some(resync) = resync {
                self.inbox.send(resync);
            }
            tokio::time::sleep(BUS_UNREADABLE_PAUSE).await;
        }
    }
}

async fn in_time<T, E>(work: impl Future<Output = Result<T, E>>) -> bool {
    matches!(tokio::time::timeout(SUBSCRIBE_MAX, work).await, Ok(Ok(_)))
}
