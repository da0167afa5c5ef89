//! Groups concurrent sends into commits.
//!
//! Each chat belongs to one of a few appenders, which takes what waits for it, commits it at once, announces it, and
//! answers. While one commit is on its way to the disk the next batch gathers by itself: one sender alone pays no delay,
//! many share each fsync. Those who were answered together tend to send again together, so an appender that just
//! committed many waits for as many, for a fraction of what a commit takes: otherwise the first of them goes alone, and
//! the rest wait for it.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::cluster::Bus;
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::{APPEND_BATCH_MAX, APPEND_GATHER_MAX, APPEND_QUEUE_MAX, APPENDERS, REQUEST_MAX};
use crate::model::message::{Draft, Sent};
use crate::model::{Change, ChatEvent, ChatId, Clock, Code, Error, Event, Message, Result, Topic};
use crate::store::Store;
use crate::tasks::Tasks;

struct Job {
    draft: Draft,
    answer: oneshot::Sender<Result<Sent>>,
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
        let queues = (0..count)
            .map(|_| {
                let (sender, queue) = mpsc::channel(APPEND_QUEUE_MAX);
                let worker = Worker { store: store.clone(), bus: bus.clone(), clock: clock.clone() };
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
        queue.try_send(Job { draft, answer }).map_err(|_| Error::overloaded())?;
        Ok(PendingSend(outcome))
    }

    fn queue_of(&self, chat_id: ChatId) -> usize {
        let mut hasher = self.spread.build_hasher();
        hasher.write_u128(chat_id.0.as_u128());
        usize::try_from(hasher.finish() % self.queues.len() as u64).unwrap_or(0)
    }
}

struct Worker {
    store: Store,
    bus: Arc<dyn Bus>,
    clock: Clock,
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

    async fn append(&self, jobs: &mut Vec<Job>) {
        let (drafts, answers): (Vec<Draft>, Vec<_>) = jobs.drain(..).map(|job| (job.draft, job.answer)).unzip();
        metrics::append_batch(drafts.len());
        faults::at(Point::Committing).await;
        match self.store.append(&drafts, self.clock.now()).await {
            Ok(appended) => {
                let unknown = |sent: &Result<Sent>| matches!(sent, Err(error) if error.code == Code::Unavailable);
                let lost = appended.iter().zip(&drafts).filter(|(sent, _)| unknown(sent)).map(|(_, draft)| draft);
                self.doubt(lost);
                self.announce(appended, answers).await;
            }
            // A draft that the database itself chokes on must not fail its neighbours.
            Err(error) if error.code == Code::Internal && drafts.len() > 1 => {
                for (draft, answer) in drafts.into_iter().zip(answers) {
                    let alone = self.store.append(std::slice::from_ref(&draft), self.clock.now()).await;
                    match alone {
                        Ok(appended) => self.announce(appended, vec![answer]).await,
                        Err(error) => {
                            self.doubt([&draft]);
                            drop(answer.send(Err(error)));
                        }
                    }
                }
            }
            Err(error) => {
                self.doubt(&drafts);
                for answer in answers {
                    // Whoever asked may be gone.
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// The outcome of these is unknown: they may be committed, and if nobody sends them again nothing else announces them.
    fn doubt<'a>(&self, drafts: impl IntoIterator<Item = &'a Draft>) {
        let chats: HashSet<ChatId> = drafts.into_iter().map(|draft| draft.chat_id).collect();
        if !chats.is_empty() {
            self.bus.publish(Event::Resync(chats.into_iter().map(Topic::Chat).collect()));
        }
    }

    /// Tells the hubs, in the order of the commit, then the senders.
    async fn announce(&self, appended: Vec<Result<Sent>>, answers: Vec<oneshot::Sender<Result<Sent>>>) {
        faults::at(Point::Committed).await;
        let mut sends = 0;
        for sent in appended.iter().flatten() {
            // What is sent again may never have been announced: its first answer was lost, and its replica with it. Hubs
            // drop a revision that they know.
            let unchanged = |message: &Message| message.edited_at.is_none() && message.removed_at.is_none();
            let message = match sent {
                Sent::New(message) => {
                    sends += 1;
                    message
                }
                Sent::Repeated(message) if unchanged(message) => message,
                Sent::Repeated(_) => continue,
            };
            let change = Change::MessageSent(message.clone());
            self.bus.publish(Event::Chat(ChatEvent { chat_id: message.chat_id, rev: message.rev, change }));
        }
        metrics::messages_sent(sends);
        faults::at(Point::Announced).await;
        for (sent, answer) in appended.into_iter().zip(answers) {
            let _ = answer.send(sent);
        }
    }
}
