//! Where the sends of a chat wait whose row another transaction holds, so that the batches need not.
//!
//! A lane belongs to one chat. Its task waits for the chat's lock and commits what the lane holds, in order. As long as
//! the lane is there, later drafts of its chat queue behind it, never in a batch. The appender of a chat is the only one
//! to open its lane, and asks for the lane before each batch, so no draft overtakes an earlier one: those before the lane
//! were decided before it opened, and the lane ends only after its last commit, under the lock under which it was empty.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::appender::{Committer, Job};
use crate::metrics;
use crate::model::limits::{APPEND_BATCH_MAX, LANE_QUEUE_MAX, LANES_AT_ONCE_MAX, LANES_MAX};
use crate::model::{ChatId, Code, Error};
use crate::tasks::Tasks;

/// The lanes of a replica. Clones share them.
#[derive(Clone)]
pub struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    committer: Committer,
    tasks: Tasks,
    waiting: Mutex<HashMap<ChatId, VecDeque<Job>>>,
    /// Turns to use a connection.
    turns: Semaphore,
}

impl Lanes {
    /// Without lanes. The tasks wait for those that open.
    pub fn new(committer: Committer, tasks: Tasks) -> Self {
        let (waiting, turns) = (Mutex::default(), Semaphore::new(LANES_AT_ONCE_MAX));
        Self { shared: Arc::new(Shared { committer, tasks, waiting, turns }) }
    }

    /// Puts a job behind those in its chat's lane; gives it back if there is no such lane. A lane that is full refuses it.
    pub fn follow(&self, job: Job) -> Option<Job> {
        let mut waiting = self.shared.waiting.lock();
        let Some(lane) = waiting.get_mut(&job.draft.chat_id) else { return Some(job) };
        if lane.len() < LANE_QUEUE_MAX {
            lane.push_back(job);
            return None;
        }
        drop(waiting);
        metrics::append_refused("lane");
        job.refuse(Error::overloaded());
        None
    }

    /// Puts a job into its chat's lane, which opens if it is not there. One lane too many refuses it. Only the chat's
    /// appender may call this.
    pub fn enter(&self, job: Job) {
        let Some(job) = self.follow(job) else { return };
        let chat_id = job.draft.chat_id;
        {
            let mut waiting = self.shared.waiting.lock();
            if waiting.len() >= LANES_MAX {
                drop(waiting);
                metrics::append_refused("lanes");
                return job.refuse(Error::overloaded());
            }
            waiting.insert(chat_id, VecDeque::from([job]));
        }
        metrics::append_lane_opened();
        self.shared.tasks.spawn_vital("lane", self.shared.clone().work_off(chat_id));
    }
}

impl Shared {
    async fn work_off(self: Arc<Self>, chat_id: ChatId) {
        while !self.ends(chat_id) {
            // The turns are never closed.
            let Ok(_turn) = self.turns.acquire().await else { return };
            self.committer.commit_patiently(self.next(chat_id)).await;
        }
    }

    /// Ends the lane if nothing waits in it.
    fn ends(&self, chat_id: ChatId) -> bool {
        let mut waiting = self.waiting.lock();
        let empty = waiting.get(&chat_id).is_none_or(VecDeque::is_empty);
        if empty {
            waiting.remove(&chat_id);
        }
        empty
    }

    fn next(&self, chat_id: ChatId) -> Vec<Job> {
        let mut waiting = self.waiting.lock();
        let Some(lane) = waiting.get_mut(&chat_id) else { return Vec::new() };
        let count = lane.len().min(APPEND_BATCH_MAX);
        lane.drain(..count).collect()
    }
}

impl Committer {
    /// Commits jobs of one chat, however long its lock takes, and answers them.
    async fn commit_patiently(&self, jobs: Vec<Job>) {
        let drafts: Vec<_> = jobs.iter().map(|job| job.draft.clone()).collect();
        metrics::append_batch(drafts.len());
        match self.store.append_patiently(&drafts, self.clock.now()).await {
            Ok(appended) => self.announce(appended.into_iter().zip(jobs).collect()).await,
            // A draft that the database itself chokes on must not fail its neighbours.
            Err(error) if error.code == Code::Internal && jobs.len() > 1 => {
                for job in jobs {
                    let alone = self.store.append_patiently(std::slice::from_ref(&job.draft), self.clock.now()).await;
                    match alone {
                        Ok(appended) => self.announce(appended.into_iter().zip([job]).collect()).await,
                        Err(error) => job.refuse(error),
                    }
                }
            }
            Err(error) => jobs.into_iter().for_each(|job| job.refuse(error.clone())),
        }
    }
}
