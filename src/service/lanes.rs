//! Lanes: queues for chats whose row another transaction locks, so that batches do not wait for
//! these chats.
//!
//! A lane belongs to one chat. Its task waits for the chat's lock and commits the drafts of the
//! lane in order. While the lane exists, later drafts of its chat join it and never go into a
//! batch.
//!
//! No draft overtakes an earlier draft of its chat. Only the chat's appender opens the lane, once
//! the earlier drafts have their outcomes, and it checks for the lane before each batch. The lane
//! ends only after its last commit: the check that it is empty and its removal are under one mutex.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::committer::{Committer, QueuedDraft};
use crate::metrics;
use crate::model::limits::{APPEND_BATCH_MAX, LANE_QUEUE_MAX, LANES_AT_ONCE_MAX, LANES_MAX};
use crate::model::{ChatId, Error};
use crate::tasks::Tasks;

/// The lanes of a replica. Clones share them.
#[derive(Clone)]
pub(super) struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    committer: Committer,
    tasks: Tasks,
    waiting: Mutex<HashMap<ChatId, VecDeque<QueuedDraft>>>,
    /// Permits to use a database connection for a commit.
    permits: Semaphore,
}

impl Lanes {
    /// Starts without lanes. Each lane runs as one of `tasks`.
    pub fn new(committer: Committer, tasks: Tasks) -> Self {
        let (waiting, permits) = (Mutex::default(), Semaphore::new(LANES_AT_ONCE_MAX));
        Self { shared: Arc::new(Shared { committer, tasks, waiting, permits }) }
    }

    /// Puts a draft at the end of its chat's lane, or refuses it if the lane is full. Returns the
    /// draft if the chat has no lane.
    pub fn join(&self, queued: QueuedDraft) -> Option<QueuedDraft> {
        let mut waiting = self.shared.waiting.lock();
        let Some(lane) = waiting.get_mut(&queued.draft.chat_id) else { return Some(queued) };
        if lane.len() < LANE_QUEUE_MAX {
            lane.push_back(queued);
            return None;
        }
        drop(waiting);

        metrics::append_refused("lane");
        queued.refuse(Error::overloaded());
        None
    }

    /// Puts a draft into its chat's lane, and opens the lane if the chat has none. Refuses the
    /// draft if there are [`LANES_MAX`] lanes. Only the chat's appender calls this, so no other
    /// task opens the lane at the same time.
    pub fn open_or_join(&self, queued: QueuedDraft) {
        let Some(queued) = self.join(queued) else { return };
        let chat_id = queued.draft.chat_id;
        {
            let mut waiting = self.shared.waiting.lock();
            if waiting.len() >= LANES_MAX {
                drop(waiting);
                metrics::append_refused("lanes");
                return queued.refuse(Error::overloaded());
            }
            waiting.insert(chat_id, VecDeque::from([queued]));
        }

        metrics::append_lane_opened();
        self.shared.tasks.spawn_vital("lane", self.shared.clone().run(chat_id));
    }
}

impl Shared {
    /// Commits the drafts of a lane until it is empty.
    async fn run(self: Arc<Self>, chat_id: ChatId) {
        while !self.end_if_empty(chat_id) {
            // The semaphore is never closed.
            let Ok(_permit) = self.permits.acquire().await else { return };
            self.committer.commit_under_lock(self.next_batch(chat_id)).await;
        }
    }

    /// Ends the lane if it is empty. Returns whether it ended.
    fn end_if_empty(&self, chat_id: ChatId) -> bool {
        let mut waiting = self.waiting.lock();
        let empty = waiting.get(&chat_id).is_none_or(VecDeque::is_empty);
        if empty {
            waiting.remove(&chat_id);
        }
        empty
    }

    fn next_batch(&self, chat_id: ChatId) -> Vec<QueuedDraft> {
        let mut waiting = self.waiting.lock();
        let Some(lane) = waiting.get_mut(&chat_id) else { return Vec::new() };
        let count = lane.len().min(APPEND_BATCH_MAX);
        lane.drain(..count).collect()
    }
}
