//! The publishing side of the bus over Redis: one task, with many events per round trip.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bb8_redis::redis::{Cmd, cmd};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::dirty::DirtyTopics;
use super::health::{BusHealth, CANARY_EVERY};
use super::link::Redis;
use super::replica_id::ReplicaId;
use super::seal::{BUS_CONTEXT, ClusterKey};
use crate::metrics;
use crate::model::limits::{BUS_DIRTY_TOPICS_MAX, BUS_EVENT_BYTES_MAX};
use crate::model::{Clock, Epoch, Event, PresentEpoch, Topic};
use crate::wire::bus::{BusHeader, BusKind, VERSION};

/// Events published in one round trip.
const PUBLISH_BATCH: usize = 128;

/// Publishes the events of this replica.
pub(super) struct Publisher {
    own: ReplicaId,
    key: ClusterKey,
    clock: Clock,
    redis: Arc<Redis>,
    epoch: PresentEpoch,
    /// Topics with an unpublished event. Their subscribers get a resync instead, as soon as Redis
    /// accepts it.
    dirty: DirtyTopics,
    /// Whether an event did not fit into the queue of outgoing events since the last batch.
    overflowed: Arc<AtomicBool>,
    health: Arc<BusHealth>,
}

impl Publisher {
    pub(super) fn new(
        (own, key): (ReplicaId, ClusterKey),
        clock: Clock,
        redis: Arc<Redis>,
        epoch: PresentEpoch,
        overflowed: Arc<AtomicBool>,
        health: Arc<BusHealth>,
    ) -> Self {
        let dirty = DirtyTopics::new("unpublished", BUS_DIRTY_TOPICS_MAX);
        Self { own, key, clock, redis, epoch, dirty, overflowed, health }
    }

    /// Publishes queued events until `stop`.
    pub(super) async fn run(
        mut self,
        mut outgoing: mpsc::Receiver<(Epoch, Event)>,
        stop: CancellationToken,
    ) {
        let mut canary_timer = tokio::time::interval(CANARY_EVERY);
        canary_timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(PUBLISH_BATCH);

        loop {
            let mut canary = false;
            tokio::select! {
                biased;
                received = outgoing.recv_many(&mut batch, PUBLISH_BATCH) => {
                    if received == 0 {
                        return;
                    }
                }
                // Polled after the queue: the events of the last requests are published before the
                // task ends.
                () = stop.cancelled() => return,
                _ = canary_timer.tick() => canary = true,
            }
            self.publish(&mut batch, canary).await;
        }
    }

    /// Publishes a batch of events, resyncs of some dirty topics, and a canary if `canary`.
    async fn publish(&mut self, batch: &mut Vec<(Epoch, Event)>, canary: bool) {
        if self.overflowed.swap(false, Ordering::AcqRel) {
            self.dirty.add(Topic::Everyone);
        }

        let resyncs: Vec<Topic> = self.dirty.iter().take(PUBLISH_BATCH).collect();
        let mut commands: Vec<Cmd> = Vec::with_capacity(batch.len() + resyncs.len() + 1);
        for (epoch, event) in batch.iter() {
            self.event_commands(*epoch, event, &mut commands);
        }
        commands.extend(resyncs.iter().map(|topic| self.topic_command(BusKind::Resync, *topic)));
        if canary {
            let body = self.sealed(&self.header(BusKind::Canary, Vec::new()));
            commands.push(self.command(self.redis.key("canary", &self.own.to_string()), &body));
        }

        if self.redis.all("publish", &commands).await.is_ok() {
            for topic in resyncs {
                self.dirty.remove(topic);
            }
            if canary {
                self.health.canary_published();
            }
        } else {
            metrics::bus_unpublished(batch.len());
            for topic in batch.iter().flat_map(|(_, event)| event.topics()) {
                self.dirty.add(topic);
            }
        }
        batch.clear();
    }

    /// Adds the commands that publish an event on each of its topics. The event is serialised once.
    fn event_commands(&self, epoch: Epoch, event: &Event, commands: &mut Vec<Cmd>) {
        if let Event::Resync(topics) = event {
            commands.extend(
                topics.iter().map(|topic| self.topic_command(BusKind::OutcomeUnknown, *topic)),
            );
            return;
        }

        let header =
            BusHeader { epoch: Some(epoch), ..self.header(BusKind::Event, event.topics()) };
        let body = self.key.seal_with(BUS_CONTEXT, |body| header.write_event(event, body));
        let too_large = body.len() > BUS_EVENT_BYTES_MAX;
        if too_large {
            metrics::bus_event_too_large();
        }

        for topic in header.topics {
            commands.push(if too_large {
                self.topic_command(BusKind::Resync, topic)
            } else {
                self.command(self.channel(topic), &body)
            });
        }
    }

    /// The command that publishes a message without a payload on its one topic.
    fn topic_command(&self, kind: BusKind, topic: Topic) -> Cmd {
        self.command(self.channel(topic), &self.sealed(&self.header(kind, vec![topic])))
    }

    fn header(&self, kind: BusKind, topics: Vec<Topic>) -> BusHeader {
        let epoch = Some(self.epoch.get());
        BusHeader {
            version: VERSION,
            kind,
            from: self.own.0,
            epoch,
            sealed_at: self.clock.now(),
            topics,
        }
    }

    fn sealed(&self, header: &BusHeader) -> Vec<u8> {
        self.key.seal_with(BUS_CONTEXT, |body| header.write(body))
    }

    fn channel(&self, topic: Topic) -> String {
        Channel::of(topic).name(self.redis.prefix())
    }

    fn command(&self, channel: String, body: &[u8]) -> Cmd {
        let mut publish = cmd(if self.redis.is_cluster() { "SPUBLISH" } else { "PUBLISH" });
        publish.arg(channel).arg(body);
        publish
    }
}
