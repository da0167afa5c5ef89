//! Groups concurrent sends into commits.
//!
//! Each chat belongs to one of a few appenders. An appender takes the drafts in its queue, commits
//! them in one transaction, publishes their events and answers their senders. While a commit goes
//! to the disk, the next batch gathers in the queue. So a single sender has no delay, and many
//! senders share each fsync.
//!
//! Senders that were answered together tend to send again together. So after a commit of many
//! drafts, the appender waits for as many drafts again, for at most half of the time that the
//! commit took. Without this wait, it would commit the first draft by itself, and the other drafts
//! would wait for that commit.
//!
//! A chat whose row another transaction locks gets a lane ([`super::lanes`]), so that the other
//! chats do not wait for that lock.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::committer::{Committer, PendingSend, QueuedDraft};
use super::lanes::Lanes;
use crate::cluster::Bus;
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::{APPEND_BATCH_MAX, APPEND_GATHER_MAX, APPEND_QUEUE_MAX, APPENDERS};
use crate::model::message::Draft;
use crate::model::{ChatId, Clock, Code, Error, Result};
use crate::store::Store;
use crate::tasks::Tasks;

/// The queues of the appenders.
pub(super) struct Appender {
    queues: Vec<mpsc::Sender<QueuedDraft>>,
    spread: RandomState,
}

impl Appender {
    /// Starts the appenders. When `tasks` stop, each appender commits the drafts in its queue and
    /// ends.
    pub fn start(store: &Store, bus: &Arc<dyn Bus>, clock: &Clock, tasks: &Tasks) -> Self {
        // SQLite has one writer: with a second appender, batches would only be smaller.
        let count = if store.is_embedded() { 1 } else { APPENDERS };
        let committer = Committer { store: store.clone(), bus: bus.clone(), clock: clock.clone() };
        let lanes = Lanes::new(committer.clone(), tasks.clone());

        let queues = (0..count)
            .map(|_| {
                let (sender, queue) = mpsc::channel(APPEND_QUEUE_MAX);
                let worker = Worker { committer: committer.clone(), lanes: lanes.clone() };
                tasks.spawn_vital("appender", worker.run(queue, tasks.stop_token()));
                sender
            })
            .collect();
        Self { queues, spread: RandomState::new() }
    }

    /// Queues a draft behind the other drafts of its chat.
    ///
    /// # Errors
    /// `unavailable` if the queue is full.
    pub fn submit(&self, draft: Draft) -> Result<PendingSend> {
        let queue = &self.queues[self.queue_of(draft.chat_id)];
        let (queued, pending) = QueuedDraft::new(draft);
        queue.try_send(queued).map_err(|_| {
            metrics::append_refused("queue");
            Error::overloaded()
        })?;
        Ok(pending)
    }

    fn queue_of(&self, chat_id: ChatId) -> usize {
        let mut hasher = self.spread.build_hasher();
        hasher.write_u128(chat_id.0.as_u128());
        usize::try_from(hasher.finish() % self.queues.len() as u64).unwrap_or(0)
    }
}

struct Worker {
    committer: Committer,
    lanes: Lanes,
}

impl Worker {
    async fn run(self, mut queue: mpsc::Receiver<QueuedDraft>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(APPEND_BATCH_MAX);
        // The size of the last batch, and how long the next batch may wait to reach that size.
        let (mut expected, mut gather_window) = (1, Duration::ZERO);

        loop {
            tokio::select! {
                // The queue first: drafts that were queued before the stop are committed.
                biased;
                taken = queue.recv_many(&mut batch, APPEND_BATCH_MAX) => if taken == 0 { return },
                () = stop.cancelled() => return,
            }

            let gathering = async {
                while batch.len() < expected {
                    let free = APPEND_BATCH_MAX - batch.len();
                    if queue.recv_many(&mut batch, free).await == 0 {
                        return;
                    }
                }
            };
            // A timeout ordinarily ends the gather window.
            let _ = tokio::time::timeout(gather_window, gathering).await;

            expected = batch.len();
            let start = Instant::now();
            self.append(&mut batch).await;
            gather_window = (start.elapsed() / 2).min(APPEND_GATHER_MAX);
        }
    }

    /// Commits and answers the drafts of chats without a lane. The other drafts join their lanes.
    async fn append(&self, batch: &mut Vec<QueuedDraft>) {
        let batch: Vec<_> = batch.drain(..).filter_map(|queued| self.lanes.join(queued)).collect();
        if batch.is_empty() {
            return;
        }
        metrics::append_batch(batch.len());
        faults::at(Point::Committing).await;

        let Err((error, batch)) = self.commit(batch).await else { return };
        if error.code != Code::Internal || batch.len() == 1 {
            self.committer.fail(batch, &error);
            return;
        }

        // A draft that the database fails on must not fail the others of its batch: commit each by
        // itself.
        for queued in batch.into_iter().filter_map(|queued| self.lanes.join(queued)) {
            if let Err((error, failed)) = self.commit(vec![queued]).await {
                self.committer.fail(failed, &error);
            }
        }
    }

    /// Commits drafts whose chats no other transaction locks, and puts the others into lanes.
    ///
    /// # Errors
    /// All drafts, if the transaction failed.
    async fn commit(&self, batch: Vec<QueuedDraft>) -> Result<(), (Error, Vec<QueuedDraft>)> {
        for held in self.committer.commit_free(batch).await? {
            self.lanes.open_or_join(held);
        }
        Ok(())
    }
}
