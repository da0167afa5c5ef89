//! Groups concurrent sends into commits.
//!
//! Each chat belongs to one of a few appenders, which takes what waits for it, commits it at once, announces it, and
//! answers. While one commit is on its way to the disk the next batch gathers by itself: one sender alone pays no delay,
//! many share each fsync. Those who were answered together tend to send again together, so an appender that just
//! committed many waits for as many, for a fraction of what a commit takes: otherwise the first of them goes alone, and
//! the rest wait for it.
//!
//! A chat that another transaction holds gets a lane of its own ([`super::lanes`]), so that the others don't wait for it.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::lanes::Lanes;
use crate::cluster::Bus;
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::{APPEND_BATCH_MAX, APPEND_GATHER_MAX, APPEND_QUEUE_MAX, APPENDERS, REQUEST_MAX};
use crate::model::message::{Draft, Sent};
use crate::model::{Change, ChatEvent, ChatId, Clock, Code, Error, Event, Result, Topic};
use crate::store::Store;
use crate::tasks::Tasks;

/// A draft that waits for its commit, and where its sender waits.
pub(super) struct Job {
    pub(super) draft: Draft,
    answer: oneshot::Sender<Result<Sent>>,
}

impl Job {
    /// Answers that the draft was not sent.
    pub(super) fn refuse(self, error: Error) {
        self.answer(Err(error));
    }

    fn answer(self, outcome: Result<Sent>) {
        // The sender may be gone.
        let _ = self.answer.send(outcome);
    }
}

/// The way into the appenders.
pub struct Appender {
    queues: Vec<mpsc::Sender<Job>>,
    spread: RandomState,
}

/// A draft that waits for its commit. Queued already: dropping this does not take it back.
#[derive(Debug)]
pub struct PendingSend(oneshot::Receiver<Result<Sent>>);

impl PendingSend {
    /// The outcome, once it is durable.
    ///
    /// # Errors
    /// What [`Store::append`] refuses; `unavailable` if the outcome is not known, also because it takes too long: batch
    /// behind batch may wait for a database that does not answer.
    pub async fn outcome(self) -> Result<Sent> {
        match tokio::time::timeout(REQUEST_MAX, self.0).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Error::overloaded()),
        }
    }
}

impl Appender {
    /// Starts the appenders; they run until the tasks are stopped, and finish what they hold.
    pub fn start(store: &Store, bus: &Arc<dyn Bus>, clock: &Clock, tasks: &Tasks) -> Self {
        // SQLite has one writer: a second appender would only make smaller batches.
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

    /// Queues a draft behind those that its chat has waiting.
    ///
    /// # Errors
    /// `unavailable` if too many wait.
    pub fn submit(&self, draft: Draft) -> Result<PendingSend> {
        let (answer, outcome) = oneshot::channel();
        let queue = &self.queues[self.queue_of(draft.chat_id)];
        queue.try_send(Job { draft, answer }).map_err(|_| {
            metrics::append_refused("queue");
            Error::overloaded()
        })?;
        Ok(PendingSend(outcome))
    }

    fn queue_of(&self, chat_id: ChatId) -> usize {
        let mut hasher = self.spread.build_hasher();
        hasher.write_u128(chat_id.0.as_u128());
        usize::try_from(hasher.finish() % self.queues.len() as u64).unwrap_or(0)
    }
}

/// What a commit needs, and what follows from it.
#[derive(Clone)]
pub(super) struct Committer {
    pub(super) store: Store,
    bus: Arc<dyn Bus>,
    pub(super) clock: Clock,
}

struct Worker {
    committer: Committer,
    lanes: Lanes,
}

impl Worker {
    async fn run(self, mut queue: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut jobs = Vec::with_capacity(APPEND_BATCH_MAX);
        // How many the last commit held, and how long it is worth to wait for as many.
        let (mut expected, mut patience) = (1, Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                taken = queue.recv_many(&mut jobs, APPEND_BATCH_MAX) => if taken == 0 { return },
                () = stop.cancelled() => return,
            }
            let gathering = async {
                while jobs.len() < expected {
                    let room = APPEND_BATCH_MAX - jobs.len();
                    if queue.recv_many(&mut jobs, room).await == 0 {
                        return;
                    }
                }
            };
            // Running out of patience is the ordinary end of it.
            let _ = tokio::time::timeout(patience, gathering).await;
            expected = jobs.len();
            let start = Instant::now();
            self.append(&mut jobs).await;
            patience = (start.elapsed() / 2).min(APPEND_GATHER_MAX);
        }
    }

    /// Commits what has no lane, and answers it; a chat that another transaction holds gets a lane.
    async fn append(&self, jobs: &mut Vec<Job>) {
        let jobs: Vec<Job> = jobs.drain(..).filter_map(|job| self.lanes.follow(job)).collect();
        if jobs.is_empty() {
            return;
        }
        metrics::append_batch(jobs.len());
        faults::at(Point::Committing).await;
        let Err((error, jobs)) = self.attempt(jobs).await else { return };

        if error.code != Code::Internal || jobs.len() == 1 {
            self.committer.give_up(jobs, &error);
            return;
        }
        // A draft that the database itself chokes on must not fail its neighbours.
        for job in jobs.into_iter().filter_map(|job| self.lanes.follow(job)) {
            if let Err((error, jobs)) = self.attempt(vec![job]).await {
                self.committer.give_up(jobs, &error);
            }
        }
    }

    /// Commits jobs as far as their chats are free. Gives them back if that failed as a whole.
    async fn attempt(&self, jobs: Vec<Job>) -> Result<(), (Error, Vec<Job>)> {
        let drafts: Vec<Draft> = jobs.iter().map(|job| job.draft.clone()).collect();
        let attempted = match self.committer.store.try_append(&drafts, self.committer.clock.now()).await {
            Ok(attempted) => attempted,
            Err(error) => return Err((error, jobs)),
        };

        let (mut decided, mut held) = (Vec::with_capacity(jobs.len()), Vec::new());
        for (sent, job) in attempted.into_iter().zip(jobs) {
            match sent {
                Some(sent) => decided.push((sent, job)),
                None => held.push(job),
            }
        }
        self.committer.announce(decided).await;
        for job in held {
            self.lanes.enter(job);
        }
        Ok(())
    }
}

impl Committer {
    /// Publishes what was committed, in the order of the commit, then answers the senders.
    pub(super) async fn announce(&self, decided: Vec<(Result<Sent>, Job)>) {
        faults::at(Point::Committed).await;
        let unknown = |sent: &Result<Sent>| matches!(sent, Err(error) if error.code == Code::Unavailable);
        self.doubt(decided.iter().filter(|(sent, _)| unknown(sent)).map(|(_, job)| &job.draft));

        let (mut sends, mut messages) = (0, Vec::with_capacity(decided.len()));
        for (sent, _) in &decided {
            match sent {
                Ok(Sent::New(message)) => {
                    sends += 1;
                    messages.push(message);
                }
                // What is sent again may never have been announced: its first answer was lost, and its replica with it.
                // Hubs drop a revision that they know.
                Ok(Sent::Repeated(message)) if message.edited_at.is_none() && message.removed_at.is_none() => {
                    messages.push(message);
                }
                _ => {}
            }
        }
        // What took the careful path has its place behind the others of its chat.
        messages.sort_by_key(|message| message.rev);
        for message in messages {
            let change = Change::MessageSent(message.clone());
            self.bus.publish(Event::Chat(ChatEvent { chat_id: message.chat_id, rev: message.rev, change }));
        }
        metrics::messages_sent(sends);
        faults::at(Point::Announced).await;

        for (sent, job) in decided {
            job.answer(sent);
        }
    }

    /// Answers jobs whose commit failed.
    pub(super) fn give_up(&self, jobs: Vec<Job>, error: &Error) {
        self.doubt(jobs.iter().map(|job| &job.draft));
        for job in jobs {
            job.refuse(error.clone());
        }
    }

    /// The outcome of these is unknown: they may be committed, and if nobody sends them again nothing else announces them.
    fn doubt<'a>(&self, drafts: impl IntoIterator<Item = &'a Draft>) {
        let chats: HashSet<ChatId> = drafts.into_iter().map(|draft| draft.chat_id).collect();
        if !chats.is_empty() {
            self.bus.publish(Event::Resync(chats.into_iter().map(Topic::Chat).collect()));
        }
    }
}
