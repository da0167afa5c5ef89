//! The bus: how a replica tells all hubs, its own included, what it committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::metrics;
use crate::model::limits::BUS_QUEUE_MAX;
use crate::model::{Event, Topic};

/// Publishes events to every hub that follows one of their topics.
///
/// **Delivery** is at most once: whoever listens must notice a hole by the chat's `rev` and ask the store, which is the
/// truth. A replica hears its own events by a way of their own, whatever became of the bus. **Order** is kept per
/// publisher as far as nothing is lost. **Never blocks** and never fails: an event that can't be queued is dropped, and
/// the inboxes that it was for learn, as soon as they can be reached, that something was lost.
pub trait Bus: Send + Sync {
    /// Announces what was committed. To be called after the commit only.
    fn publish(&self, event: Event);
    /// Asks for what is announced on a topic. The inbox yields [`Arrival::Look`] once that is so. A topic is
    /// followed or not: asking twice is asking once.
    fn follow(&self, topic: Topic);
    /// Asks no more.
    fn unfollow(&self, topic: Topic);
}

/// What an inbox yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is nearly all of them")]
pub enum Arrival {
    /// Something happened.
    Event(Event),
    /// These topics may hold something that this inbox did not get, since they are heard from now on only or since it was
    /// too large to tell: compare them with the store.
    Look(Vec<Topic>),
    /// Something happened that this inbox did not get: compare everything with the store.
    Lost,
}

/// A hub's end of the bus.
#[derive(Debug)]
pub struct BusInbox {
    receiver: mpsc::Receiver<Arrival>,
    lost: Arc<AtomicBool>,
}

impl BusInbox {
    /// The next arrival; `None` once the bus is gone.
    pub async fn next(&mut self) -> Option<Arrival> {
        if self.lost.swap(false, Ordering::AcqRel) {
            return Some(Arrival::Lost);
        }
        self.receiver.recv().await
    }
}

/// The feeding end of an inbox.
#[derive(Clone, Debug)]
pub struct BusFeeder {
    sender: mpsc::Sender<Arrival>,
    lost: Arc<AtomicBool>,
}

impl BusFeeder {
    /// An inbox of bounded length and the end that fills it.
    pub fn new() -> (Self, BusInbox) {
        let (sender, receiver) = mpsc::channel(BUS_QUEUE_MAX);
        let lost = Arc::<AtomicBool>::default();
        (Self { sender, lost: lost.clone() }, BusInbox { receiver, lost })
    }

    /// Queues an arrival, or marks the inbox as having lost one.
    pub fn feed(&self, arrival: Arrival) {
        if self.sender.try_send(arrival).is_err() {
            self.lost.store(true, Ordering::Release);
            metrics::bus_lost();
        }
    }
}
