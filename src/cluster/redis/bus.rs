//! The bus over Redis pub/sub: a task that publishes and a task that keeps the subscribed
//! connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::address::RedisAddress;
use super::health::BusHealth;
use super::link::Redis;
use super::publisher::Publisher;
use super::replica_id::ReplicaId;
use super::seal::ClusterKey;
use super::subscriber::Subscriber;
use crate::cluster::bus::BusSender;
use crate::cluster::{Arrival, Bus, BusInbox};
use crate::metrics;
use crate::model::limits::BUS_QUEUE_MAX;
use crate::model::{Clock, Epoch, Event, PresentEpoch, Topic};
use crate::tasks::Tasks;

/// Publishes through one task and receives through another. Own events go to the hub directly.
pub struct RedisBus {
    /// The inbox of this replica's hub: own events do not pass through Redis.
    local: BusSender,
    epoch: PresentEpoch,
    outgoing: mpsc::Sender<(Epoch, Event)>,
    /// Whether an event did not fit into `outgoing` since the publisher last checked.
    overflowed: Arc<AtomicBool>,
    subscriber: Arc<Subscriber>,
}

impl Bus for RedisBus {
    fn publish(&self, event: Event) {
        self.local.send(Arrival::Event(event.clone()));
        if self.outgoing.try_send((self.epoch.get(), event)).is_err() {
            self.overflowed.store(true, Ordering::Release);
            metrics::bus_lost();
        }
    }

    fn follow(&self, topic: Topic) {
        self.subscriber.follow(topic);
    }

    fn unfollow(&self, topic: Topic) {
        self.subscriber.unfollow(topic);
    }
}

impl RedisBus {
    /// Starts the publisher and the subscriber. They run until `tasks` stop. The publisher
    /// publishes the queued events before it ends.
    pub fn start(
        own: ReplicaId,
        key: ClusterKey,
        redis: Arc<Redis>,
        address: RedisAddress,
        epoch: PresentEpoch,
        clock: &Clock,
        tasks: &Tasks,
    ) -> (Self, BusInbox, Arc<BusHealth>) {
        let (local, inbox) = BusSender::new();
        let (outgoing, events) = mpsc::channel(BUS_QUEUE_MAX);
        let overflowed = Arc::<AtomicBool>::default();
        let health = Arc::new(BusHealth::new());
        let identity = (own, key);

        let publisher = Publisher::new(
            identity.clone(),
            clock.clone(),
            redis.clone(),
            epoch.clone(),
            overflowed.clone(),
            health.clone(),
        );
        tasks.spawn_vital("publisher", publisher.run(events, tasks.stop_token()));

        let subscriber = Subscriber::new(
            identity,
            clock.clone(),
            redis,
            address,
            epoch.clone(),
            local.clone(),
            health.clone(),
        );
        tasks.spawn_vital("subscriber", subscriber.clone().run(tasks.stop_token()));
        tasks.spawn_vital(
            "unreadable events",
            subscriber.clone().resync_unreadable(tasks.stop_token()),
        );

        (Self { local, epoch, outgoing, overflowed, subscriber }, inbox, health)
    }

    /// Has the hub compare all changed chats with the store: another replica may have died before
    /// it published an event.
    pub fn resync_all(&self) {
        self.local.send(Arrival::ResyncAll);
    }
}
