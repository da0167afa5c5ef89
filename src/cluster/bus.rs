//! The bus: how a replica announces what it committed to all hubs, its own included.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::metrics;
use crate::model::limits::BUS_QUEUE_MAX;
use crate::model::{Event, Topic};

/// Publishes events to every hub that follows one of their topics.
///
/// **Delivery** is at most once: a subscriber must notice a gap by the chat's `rev` and ask the
/// store, which is the truth. A replica's own events reach its hub directly, whatever happens to
/// the bus. **Order** is kept per publisher as long as nothing is lost. **Publishing never blocks**
/// and never fails: an event that does not fit into the queue is dropped, and the inboxes that it
/// was for get a resync as soon as they can be reached.
pub trait Bus: Send + Sync {
    /// Publishes an event. To be called only after the commit.
    fn publish(&self, event: Event);
    /// Subscribes to a topic. The inbox yields [`Arrival::Resync`] with the topic once the
    /// subscription is in force. Subscribing twice is subscribing once.
    fn follow(&self, topic: Topic);
    /// Ends the subscription to a topic.
    fn unfollow(&self, topic: Topic);
}

/// What an inbox yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all arrivals are events")]
pub enum Arrival {
    /// An event.
    Event(Event),
    /// The inbox may have missed an event of these topics: compare them with the store. The
    /// subscription has just begun, or the event was too large to publish, or this replica could
    /// not read it.
    Resync(Vec<Topic>),
    /// The inbox may have missed an event of any topic: compare everything with the store.
    ResyncAll,
}

impl Arrival {
    /// A resync of these topics, which is one of everything if [`Topic::Everyone`] is among them.
    pub fn resync(topics: Vec<Topic>) -> Self {
        if topics.contains(&Topic::Everyone) { Self::ResyncAll } else { Self::Resync(topics) }
    }
}

/// A hub's end of the bus.
#[derive(Debug)]
pub struct BusInbox {
    receiver: mpsc::Receiver<Arrival>,
    overflowed: Arc<AtomicBool>,
}

impl BusInbox {
    /// The next arrival; `None` once the bus has ended.
    pub async fn next(&mut self) -> Option<Arrival> {
        if self.overflowed.swap(false, Ordering::AcqRel) {
            return Some(Arrival::ResyncAll);
        }
        self.receiver.recv().await
    }
}

/// The sending end of an inbox.
#[derive(Clone, Debug)]
pub struct BusSender {
    sender: mpsc::Sender<Arrival>,
    overflowed: Arc<AtomicBool>,
}

impl BusSender {
    /// An inbox of at most [`BUS_QUEUE_MAX`] arrivals, and the end that fills it.
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
