//! The bus over Redis pub/sub.
//!
//! One task publishes what this replica committed, many events a round trip. Another keeps the one subscribed
//! connection: it follows what the hub follows, and when it was cut, or hears nothing of what this replica says to itself,
//! it connects anew and has the hub compare everything with the store. While there is no bus at all, the hub compares
//! again and again: slower, but nothing is lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bb8_redis::redis::{Cmd, PushInfo, PushKind, Value, cmd};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::address::RedisAddress;
use super::channel::{Channel, Subscribed};
use super::envelope::{ClusterKey, Envelope, Said};
use super::link::{Link, Redis};
use super::{BusHealth, ReplicaId};
use crate::cluster::bus::BusFeeder;
use crate::cluster::{Arrival, Bus, BusInbox};
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::limits::{BUS_QUEUE_MAX, BUS_STALE_TOPICS_MAX};
use crate::model::{Clock, Epoch, Event, PresentEpoch, Topic};
use crate::tasks::Tasks;

/// Events announced in one round trip.
const PUBLISH_BATCH: usize = 128;
/// Bytes of an event that is told; a larger one is only announced, so that no subscriber's buffer in Redis overflows.
const TOLD_BYTES_MAX: usize = 16 * 1024;
/// Topics whose events could not be told, remembered one by one; beyond it everybody looks at everything.
const UNTOLD_MAX: usize = 10_000;
/// Channels in one `SUBSCRIBE`.
const SUBSCRIBE_BATCH: usize = 512;
/// How often a replica speaks to itself.
const CANARY_EVERY: Duration = Duration::from_secs(2);
/// Silence of one's own voice after which the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// How long subscribing may take.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(3);
/// How often the hub looks at everything while there is no bus.
const BLIND_LOOK_EVERY: Duration = Duration::from_secs(1);

/// The bus over Redis.
pub struct RedisBus {
    local: BusFeeder,
    epoch: PresentEpoch,
    untold: mpsc::Sender<(Epoch, Event)>,
    /// An event did not fit into the queue.
    overflowed: Arc<AtomicBool>,
    subscriptions: Arc<Subscriptions>,
}

/// What the subscriber and the hub share.
struct Subscriptions {
    own: ReplicaId,
    key: ClusterKey,
    clock: Clock,
    redis: Arc<Redis>,
    address: RedisAddress,
    epoch: PresentEpoch,
    local: BusFeeder,
    /// Topics of stale events, to be looked at together: a flood of replayed events costs one look a second.
    stale: Mutex<HashSet<Topic>>,
    wanted: Mutex<HashSet<Topic>>,
    /// Topics whose wish changed since the subscriber looked.
    changed: Mutex<HashSet<Topic>>,
    news: Notify,
    health: Arc<BusHealth>,
}

impl Bus for RedisBus {
    fn publish(&self, event: Event) {
        self.local.feed(Arrival::Event(event.clone()));
        if self.untold.try_send((self.epoch.get(), event)).is_err() {
            self.overflowed.store(true, Ordering::Release);
            metrics::bus_lost();
        }
    }

    fn follow(&self, topic: Topic) {
        self.subscriptions.wanted.lock().insert(topic);
        self.subscriptions.changed.lock().insert(topic);
        self.subscriptions.news.notify_one();
    }

    fn unfollow(&self, topic: Topic) {
        self.subscriptions.wanted.lock().remove(&topic);
        self.subscriptions.changed.lock().insert(topic);
        self.subscriptions.news.notify_one();
    }
}

impl RedisBus {
    /// Starts the publisher and the subscriber; they run until `stop`, and announce first what was committed before.
    pub fn start(
        own: ReplicaId,
        key: ClusterKey,
        redis: Arc<Redis>,
        address: RedisAddress,
        epoch: PresentEpoch,
        clock: &Clock,
        tasks: &Tasks,
    ) -> (Self, BusInbox, Arc<BusHealth>) {
        let (local, inbox) = BusFeeder::new();
        let (untold, events) = mpsc::channel(BUS_QUEUE_MAX);
        let overflowed = Arc::<AtomicBool>::default();
        let health = Arc::new(BusHealth::new());
        let publisher = Publisher {
            own,
            key: key.clone(),
            clock: clock.clone(),
            redis: redis.clone(),
            epoch: epoch.clone(),
            missed: HashSet::new(),
            overflowed: overflowed.clone(),
            health: health.clone(),
        };
        tasks.spawn_vital("publisher", publisher.run(events, tasks.stop_token()));
        let subscriptions = Arc::new(Subscriptions {
            own,
            key,
            clock: clock.clone(),
            redis,
            address,
            epoch: epoch.clone(),
            local: local.clone(),
            stale: Mutex::default(),
            wanted: Mutex::new(HashSet::from([Topic::Everyone])),
            changed: Mutex::default(),
            news: Notify::new(),
            health: health.clone(),
        });
        tasks.spawn_vital("subscriber", subscriptions.clone().run(tasks.stop_token()));
        (Self { local, epoch, untold, overflowed, subscriptions }, inbox, health)
    }

    /// Has the hub compare everything with the store: somebody may have died with something untold.
    pub fn look_at_everything(&self) {
        self.local.feed(Arrival::Lost);
    }
}

/// Announces what this replica committed.
struct Publisher {
    own: ReplicaId,
    key: ClusterKey,
    clock: Clock,
    redis: Arc<Redis>,
    epoch: PresentEpoch,
    /// Topics of which something could not be told. Told as soon as it can be: look for yourselves.
    missed: HashSet<Topic>,
    overflowed: Arc<AtomicBool>,
    health: Arc<BusHealth>,
}

impl Publisher {
    async fn run(mut self, mut events: mpsc::Receiver<(Epoch, Event)>, stop: CancellationToken) {
        let mut canary = tokio::time::interval(CANARY_EVERY);
        canary.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(PUBLISH_BATCH);
        loop {
            let mut sing = false;
            tokio::select! {
                biased;
                taken = events.recv_many(&mut batch, PUBLISH_BATCH) => if taken == 0 { return },
                // The work behind the last requests is announced before this ends.
                () = stop.cancelled() => return,
                _ = canary.tick() => sing = true,
            }
            self.announce(&mut batch, sing).await;
        }
    }

    async fn announce(&mut self, batch: &mut Vec<(Epoch, Event)>, sing: bool) {
        if self.overflowed.swap(false, Ordering::AcqRel) {
            self.miss(Topic::Everyone);
        }
        let looks: Vec<Topic> = self.missed.iter().copied().take(PUBLISH_BATCH).collect();
        let mut commands: Vec<Cmd> = Vec::with_capacity(batch.len() + looks.len() + 1);
        for (epoch, event) in batch.iter() {
            self.tell(*epoch, event, &mut commands);
        }
        commands.extend(looks.iter().map(|topic| self.publish(*topic, Said::Look(*topic))));
        if sing {
            let body = self.seal(None, Said::Canary);
            commands.push(self.command(self.redis.key("canary", &self.own.to_string()), body));
        }
        if self.redis.all("publish", &commands).await.is_ok() {
            for topic in looks {
                self.missed.remove(&topic);
            }
            if sing {
                self.health.sang();
            }
        } else {
            metrics::bus_untold(batch.len());
            for topic in batch.iter().flat_map(|(_, event)| event.topics()) {
                self.miss(topic);
            }
        }
        batch.clear();
    }

    fn miss(&mut self, topic: Topic) {
        if self.missed.len() >= UNTOLD_MAX {
            self.missed.clear();
            self.missed.insert(Topic::Everyone);
        }
        if !self.missed.contains(&Topic::Everyone) {
            self.missed.insert(topic);
        }
        if topic == Topic::Everyone {
            self.missed = HashSet::from([topic]);
        }
    }

    fn tell(&self, epoch: Epoch, event: &Event, commands: &mut Vec<Cmd>) {
        let body = self.seal(Some(epoch), Said::Event(event.clone()));
        for topic in event.topics() {
            if let Event::Resync(_) = event {
                // A replica of the version before knows no resync, but what a look is.
                commands.push(self.publish(topic, Said::Look(topic)));
                commands.push(self.publish(topic, Said::Event(Event::Resync(vec![topic]))));
                continue;
            }
            commands.push(if body.len() > TOLD_BYTES_MAX {
                self.publish(topic, Said::Look(topic))
            } else {
                self.command(Channel::of(topic).name(self.redis.prefix()), body.clone())
            });
        }
    }

    fn publish(&self, topic: Topic, said: Said) -> Cmd {
        self.command(Channel::of(topic).name(self.redis.prefix()), self.seal(Some(self.epoch.get()), said))
    }

    fn seal(&self, epoch: Option<Epoch>, said: Said) -> Vec<u8> {
        Envelope { from: self.own, at: self.clock.now(), epoch, said }.seal(&self.key)
    }

    fn command(&self, channel: String, body: Vec<u8>) -> Cmd {
        let mut publish = cmd(if self.redis.is_cluster() { "SPUBLISH" } else { "PUBLISH" });
        publish.arg(channel).arg(body);
        publish
    }
}

impl Subscriptions {
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tries = 0_u32;
        while !stop.is_cancelled() {
            let start = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.listen() => {}
            }
            self.health.cut();
            if !faults::on(Mutant::NoResubscribe) {
                self.local.feed(Arrival::Lost);
            }
            metrics::bus_reconnect();
            tries = if start.elapsed() > SILENCE_MAX { 0 } else { (tries + 1).min(5) };
            let pause = rand::rng().random_range(20..=50_u64 << tries);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
                () = self.look_again_and_again() => {}
            }
        }
    }

    /// Without a bus the store is the only way to learn anything. Never ends.
    async fn look_again_and_again(&self) {
        loop {
            tokio::time::sleep(BLIND_LOOK_EVERY).await;
            self.local.feed(Arrival::Lost);
        }
    }

    /// Connects, subscribes and serves one connection to its end.
    async fn listen(self: &Arc<Self>) {
        let gone = Arc::new(Notify::new());
        let push = {
            let (listener, gone) = (self.clone(), gone.clone());
            move |info: PushInfo| -> Result<(), ()> {
                listener.hear(&info, &gone);
                Ok(())
            }
        };
        let connecting = async {
            tokio::select! {
                link = Link::open(&self.address, Some(push)) => link.ok(),
                () = self.look_again_and_again() => None,
            }
        };
        let Some(mut link) = connecting.await else {
            return;
        };
        let heard = self.health.mark();
        let mut subscribed = Subscribed::default();
        let canary = self.redis.key("canary", &self.own.to_string());
        let all: Vec<Topic> = {
            self.changed.lock().clear();
            self.wanted.lock().iter().copied().collect()
        };
        let forgetful = faults::on(Mutant::NoResubscribe) && all.len() > 1;
        let all = if forgetful { vec![Topic::Everyone] } else { all };
        if !in_time(link.subscribe(vec![canary])).await || !self.subscribe(&mut link, &all, &mut subscribed).await {
            return;
        }
        if !forgetful {
            self.local.feed(Arrival::Lost);
        }
        self.health.connected();
        let mut watch = tokio::time::interval(CANARY_EVERY / 2);
        loop {
            tokio::select! {
                () = gone.notified() => return,
                _ = watch.tick() => {
                    self.look_at_stale();
                    if self.health.silence(heard) > SILENCE_MAX {
                        metrics::bus_deaf();
                        return;
                    }
                }
                () = self.news.notified() => if !self.follow_wishes(&mut link, &mut subscribed).await { return },
            }
        }
    }

    /// Subscribes to what is wanted now and was not, and the other way round.
    async fn follow_wishes(&self, link: &mut Link, subscribed: &mut Subscribed) -> bool {
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
        let followed = self.subscribe(link, &add, subscribed).await;
        if followed && !add.is_empty() {
            self.local.feed(Arrival::Look(add));
        }
        followed
    }

    async fn subscribe(&self, link: &mut Link, topics: &[Topic], subscribed: &mut Subscribed) -> bool {
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

    /// Takes what Redis pushes. Runs on the connection's own task, which thereby only drains.
    fn hear(&self, info: &PushInfo, gone: &Notify) {
        match info.kind {
            PushKind::Message | PushKind::SMessage => {
                let Some(Value::BulkString(body)) = info.data.get(1) else {
                    return;
                };
                match Envelope::open(&self.key, body) {
                    None => metrics::bus_forged(),
                    Some(envelope) if envelope.is_stale(self.clock.now()) => self.take_stale(envelope.said),
                    Some(Envelope { from, said: Said::Canary, .. }) if from == self.own => self.health.heard(),
                    // Its own events came to the hub the short way.
                    Some(Envelope { from, .. }) if from == self.own && !faults::on(Mutant::SeenAgain) => {}
                    // Committed to another history than the one in force here: the store knows which of both it is.
                    Some(Envelope { epoch: Some(epoch), said: Said::Event(event @ Event::Chat(_)), .. })
                        if epoch != self.epoch.get() =>
                    {
                        self.local.feed(Arrival::Look(event.topics()));
                    }
                    Some(Envelope { said: Said::Event(event), .. }) => self.local.feed(Arrival::Event(event)),
                    Some(Envelope { said: Said::Look(Topic::Everyone), .. }) => self.local.feed(Arrival::Lost),
                    Some(Envelope { said: Said::Look(topic), .. }) => self.local.feed(Arrival::Look(vec![topic])),
                    Some(Envelope { said: Said::Canary, .. }) => {}
                }
            }
            PushKind::Disconnection => gone.notify_one(),
            _ => {}
        }
    }

    /// Notes the topics of something stale that this replica follows. A replayed canary says nothing.
    fn take_stale(&self, said: Said) {
        metrics::bus_stale();
        let topics = match said {
            Said::Event(event) => event.topics(),
            Said::Look(topic) => vec![topic],
            Said::Canary => return,
        };
        let wanted = self.wanted.lock();
        let mut stale = self.stale.lock();
        stale.extend(topics.into_iter().filter(|topic| wanted.contains(topic)));
        if stale.len() > BUS_STALE_TOPICS_MAX {
            *stale = HashSet::from([Topic::Everyone]);
        }
    }

    /// Has the hub compare the topics of stale events with the store.
    fn look_at_stale(&self) {
        let topics = std::mem::take(&mut *self.stale.lock());
        if topics.contains(&Topic::Everyone) {
            self.local.feed(Arrival::Lost);
        } else if !topics.is_empty() {
            self.local.feed(Arrival::Look(topics.into_iter().collect()));
        }
    }
}

async fn in_time<T, E>(work: impl Future<Output = Result<T, E>>) -> bool {
    matches!(tokio::time::timeout(SUBSCRIBE_MAX, work).await, Ok(Ok(_)))
}
