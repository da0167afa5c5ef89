//! The bus: how a replica tells all hubs, its own included, what it committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::metrics;
use crate::model::Event;
use crate::model::limits::BUS_QUEUE_MAX;

/// Publishes events to every hub.
///
/// **Delivery** is at most once: whoever listens must notice a hole by the chat's `rev` and ask the store, which is the
/// truth. **Order** is kept per publisher as far as nothing is lost. **Never blocks** and never fails: an event that
/// can't be queued is dropped, and every inbox learns that something was lost.
pub trait Bus: Send + Sync {
    /// Announces what was committed. To be called after the commit only.
    fn publish(&self, event: Event);
}

/// What an inbox yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is nearly all of them")]
pub enum Arrival {
    /// Something happened.
    Event(Event),
    /// Something happened that this inbox did not get: compare with the store.
    Lost,
}

/// A hub's end of the bus.
#[derive(Debug)]
pub struct BusInbox {
    receiver: mpsc::Receiver<Event>,
    lost: Arc<AtomicBool>,
}

impl BusInbox {
    /// The next arrival; `None` once the bus is gone.
    pub async fn next(&mut self) -> Option<Arrival> {
        if self.lost.swap(false, Ordering::AcqRel) {
            return Some(Arrival::Lost);
        }
        self.receiver.recv().await.map(Arrival::Event)
    }
}

/// The feeding end of an inbox.
#[derive(Clone, Debug)]
pub struct BusFeeder {
    sender: mpsc::Sender<Event>,
    lost: Arc<AtomicBool>,
}

impl BusFeeder {
    /// An inbox of bounded length and the end that fills it.
    pub fn new() -> (Self, BusInbox) {
        let (sender, receiver) = mpsc::channel(BUS_QUEUE_MAX);
        let lost = Arc::<AtomicBool>::default();
        (Self { sender, lost: lost.clone() }, BusInbox { receiver, lost })
    }

    /// Queues an event, or marks the inbox as having lost one.
    pub fn feed(&self, event: Event) {
        if self.sender.try_send(event).is_err() {
            self.lost.store(true, Ordering::Release);
            metrics::bus_lost();
        }
    }
}
