//! The bus: carries the events of a replica to the hubs of all replicas, its own included.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::metrics;
use crate::model::limits::BUS_QUEUE_MAX;
use crate::model::{Event, Topic};

/// Publishes events to every hub that follows one of their topics.
///
/// **Delivery** is at most once: a subscriber must detect a gap by the chat's `rev` and read the
/// store. The events of a replica reach its own hub directly, even if the bus fails. **Order** is
/// kept per publisher as long as no event is lost. **Publishing never blocks** and never fails: an
/// event that does not fit into the queue is dropped, and the inboxes that follow its topics get a
/// resync as soon as they can be reached.
pub trait Bus: Send + Sync {
    /// Publishes an event. The caller must have committed its change before.
    fn publish(&self, event: Event);
    /// Subscribes to a topic. The inbox yields [`Arrival::Resync`] with the topic once the
    /// subscription is in force. A second subscription to a topic has no effect.
    fn follow(&self, topic: Topic);
    /// Ends the subscription to a topic.
    fn unfollow(&self, topic: Topic);
}

/// An item of an inbox.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all arrivals are events")]
pub enum Arrival {
    /// An event of a topic that the hub follows. The hub ignores other events, which may arrive
    /// too.
    Event(Event),
    /// The inbox may have missed an event of these topics: compare them with the store. Either the
    /// subscription has just begun, or an event was unpublished, too large, too old or unreadable.
    Resync(Vec<Topic>),
    /// The inbox may have missed an event of any topic: compare all with the store.
    ResyncAll,
}

impl Arrival {
    /// A resync of these topics; of all topics if [`Topic::Everyone`] is among them.
    pub fn resync(topics: Vec<Topic>) -> Self {
        if topics.contains(&Topic::Everyone) { Self::ResyncAll } else { Self::Resync(topics) }
    }
}

/// The receiving end of the bus, read by the hub.
#[derive(Debug)]
pub struct BusInbox {
    receiver: mpsc::Receiver<Arrival>,
    overflowed: Arc<AtomicBool>,
}

impl BusInbox {
    /// The next arrival; `None` once the bus has ended.
    pub async fn next(&mut self) -> Option<Arrival> {
        // If the flag is set later, during `recv`, the queue is full: `recv` returns at once, and
        // the next call reads the flag.
        if self.overflowed.swap(false, Ordering::AcqRel) {
            return Some(Arrival::ResyncAll);
        }

        self.receiver.recv().await
    }
}

/// The sender of an inbox.
#[derive(Clone, Debug)]
pub struct BusSender {
    sender: mpsc::Sender<Arrival>,
    overflowed: Arc<AtomicBool>,
}

impl BusSender {
    /// Returns an inbox of at most [`BUS_QUEUE_MAX`] arrivals, and its sender.
    pub fn new() -> (Self, BusInbox) {
        let (sender, receiver) = mpsc::channel(BUS_QUEUE_MAX);
        let overflowed = Arc::<AtomicBool>::default();
        (Self { sender, overflowed: overflowed.clone() }, BusInbox { receiver, overflowed })
    }

    /// Queues an arrival. If the inbox is full, the arrival is dropped and the inbox yields
    /// [`Arrival::ResyncAll`] next.
    pub fn send(&self, arrival: Arrival) {
        if self.sender.try_send(arrival).is_err() {
            self.overflowed.store(true, Ordering::Release);
            metrics::bus_lost();
        }
    }
}
