//! Repeated resyncs: after a unit of work with an unknown outcome, since its commit may still be
//! under way, and after a failed resync.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Hub;
use super::one_at_a_time::OneAtATime;
use crate::metrics;
use crate::model::limits::{RESYNC_EVERY, RESYNC_REPEATS, RESYNC_TOPICS_MAX};
use crate::model::{Result, Topic};

/// Topics to compare with the store, each with the number of comparisons still to make.
#[derive(Default)]
pub(super) struct ResyncQueue {
    topics: Mutex<HashMap<Topic, u32>>,
    worker: OneAtATime,
}

impl ResyncQueue {
    /// Adds topics. Above [`RESYNC_TOPICS_MAX`], [`Topic::Everyone`] replaces them all.
    fn add(&self, topics: impl Iterator<Item = Topic>) {
        let mut queued = self.topics.lock();
        queued.extend(topics.map(|topic| (topic, RESYNC_REPEATS)));
        if queued.len() > RESYNC_TOPICS_MAX {
            metrics::hub_resyncs_overflowed();
            *queued = HashMap::from([(Topic::Everyone, RESYNC_REPEATS)]);
        }
    }

    fn topics(&self) -> Vec<Topic> {
        self.topics.lock().keys().copied().collect()
    }

    /// Counts one comparison of each of these topics.
    fn count_down(&self, topics: &[Topic]) {
        let mut queued = self.topics.lock();
        for topic in topics {
            if let Some(repeats) = queued.get_mut(topic) {
                *repeats -= 1;
                if *repeats == 0 {
                    queued.remove(topic);
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.topics.lock().is_empty()
    }
}

impl Hub {
    /// Compares topics with the store now and several times after: a unit of work of unknown
    /// outcome may have changed them, or may still do so.
    pub(super) fn resync_repeatedly(self: &Arc<Self>, topics: Vec<Topic>) {
        self.queue_resync(&topics);
        self.resync_topics(topics);
    }

    /// Compares topics with the store [`RESYNC_REPEATS`] times, each after a pause. A comparison
    /// that the store does not answer is repeated. Presence is not in the store, so its topics are
    /// skipped.
    pub(super) fn queue_resync(self: &Arc<Self>, topics: &[Topic]) {
        self.resync_queue
            .add(topics.iter().copied().filter(|topic| !matches!(topic, Topic::Presence(_))));
        if !self.resync_queue.worker.ask() {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                while !hub.resync_queue.is_empty() && !hub.stop.is_cancelled() {
                    hub.resync_queued().await;
                }
                if !hub.resync_queue.worker.again() {
                    return;
                }
            }
        });
    }

    /// Pauses, then compares all queued topics once.
    async fn resync_queued(self: &Arc<Self>) {
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = tokio::time::sleep(RESYNC_EVERY) => {}
        }

        let topics = self.resync_queue.topics();
        let compared: Result<()> = self.compare_topics(&topics).await;
        match compared {
            Ok(()) => {
                metrics::hub_resynced(topics.len());
                self.resync_queue.count_down(&topics);
            }
            Err(error) => {
                tracing::debug!(%error, "failed to compare queued topics with the store; retrying");
            }
        }
    }
}
