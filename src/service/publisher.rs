//! Publishes the events of units of work to all replicas.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::cluster::Bus;
use crate::model::{Change, ChatEvent, Event, Kind, Result, Topic};

/// Publishes the results of units of work. Clones publish to the same bus.
#[derive(Clone)]
pub(super) struct Publisher {
    pub bus: Arc<dyn Bus>,
    /// Wakes the cleanup before its timer fires.
    pub cleanup_due: Arc<Notify>,
}

impl Publisher {
    /// Publishes an event to the hubs of all replicas.
    pub fn publish(&self, event: Event) {
        self.bus.publish(event);
    }

    /// Publishes a change of a chat. If the change removed the chat, the cleanup of its members and
    /// messages starts at once.
    pub fn publish_change(&self, event: ChatEvent) {
        let removed = matches!(event.change, Change::Removed);
        self.bus.publish(Event::Chat(event));

        if removed {
            self.cleanup_due.notify_one();
        }
    }

    /// Returns the result of a unit of work that changes `topics`. If the outcome is unknown,
    /// requests a resync of `topics`: the unit may be committed, and no other event announces it.
    pub fn resync_if_unknown<T>(
        &self,
        result: Result<T>,
        topics: impl FnOnce() -> Vec<Topic>,
    ) -> Result<T> {
        if let Err(error) = &result
            && matches!(error.kind(), Kind::Unavailable | Kind::Internal)
        {
            self.bus.publish(Event::Resync(topics()));
        }
        result
    }
}
