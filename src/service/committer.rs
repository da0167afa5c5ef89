//! Commits drafts, publishes their events in commit order, and answers their senders.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::cluster::Bus;
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::REQUEST_MAX;
use crate::model::message::{Draft, Sent};
use crate::model::{Change, ChatEvent, ChatId, Clock, Code, Error, Event, Result, Topic};
use crate::store::Store;

/// A draft that waits for its commit, with the channel for the answer to its sender.
pub(super) struct QueuedDraft {
    pub draft: Draft,
    answer: oneshot::Sender<Result<Sent>>,
}

impl QueuedDraft {
    pub fn new(draft: Draft) -> (Self, PendingSend) {
        let (answer, outcome) = oneshot::channel();
        (Self { draft, answer }, PendingSend(outcome))
    }

    /// Answers the sender with an error.
    pub fn refuse(self, error: Error) {
        self.answer(Err(error));
    }

    fn answer(self, outcome: Result<Sent>) {
        // The sender may no longer wait for the answer.
        let _ = self.answer.send(outcome);
    }
}

/// A send that waits for its commit. Dropping it does not cancel the send.
#[derive(Debug)]
pub struct PendingSend(oneshot::Receiver<Result<Sent>>);

impl PendingSend {
    /// Waits for the outcome, which is durable.
    ///
    /// # Errors
    /// Those of [`Store::append`]. `unavailable` if the outcome is unknown, or not known within
    /// [`REQUEST_MAX`]: several batches may wait in turn for a database that does not answer.
    pub async fn outcome(self) -> Result<Sent> {
        match tokio::time::timeout(REQUEST_MAX, self.0).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Error::overloaded()),
        }
    }
}

/// Commits drafts for the appenders and the lanes.
#[derive(Clone)]
pub(super) struct Committer {
    pub store: Store,
    pub bus: Arc<dyn Bus>,
    pub clock: Clock,
}

impl Committer {
    /// Commits the drafts whose chats no other transaction locks, publishes their events and
    /// answers their senders. Returns the drafts of the other chats.
    ///
    /// # Errors
    /// All drafts, if the transaction failed.
    pub async fn commit_free(
        &self,
        queued: Vec<QueuedDraft>,
    ) -> Result<Vec<QueuedDraft>, (Error, Vec<QueuedDraft>)> {
        let drafts: Vec<Draft> = queued.iter().map(|queued| queued.draft.clone()).collect();
        let attempted = match self.store.try_append(&drafts, self.clock.now()).await {
            Ok(attempted) => attempted,
            Err(error) => return Err((error, queued)),
        };

        let (mut decided, mut held) = (Vec::with_capacity(queued.len()), Vec::new());
        for (sent, queued) in attempted.into_iter().zip(queued) {
            match sent {
                Some(sent) => decided.push((sent, queued)),
                None => held.push(queued),
            }
        }
        self.announce(decided).await;
        Ok(held)
    }

    /// Commits drafts of one chat and answers their senders. Waits for the chat's lock as long as a
    /// statement may take.
    pub async fn commit_under_lock(&self, queued: Vec<QueuedDraft>) {
        let drafts: Vec<_> = queued.iter().map(|queued| queued.draft.clone()).collect();
        metrics::append_batch(drafts.len());

        match self.store.append_waiting(&drafts, self.clock.now()).await {
            Ok(appended) => self.announce(appended.into_iter().zip(queued).collect()).await,
            // A draft that the database fails on must not fail the others of its batch: commit each
            // by itself.
            Err(error) if error.code == Code::Internal && queued.len() > 1 => {
                for queued in queued {
                    self.commit_one_under_lock(queued).await;
                }
            }
            Err(error) => self.fail(queued, &error),
        }
    }

    async fn commit_one_under_lock(&self, queued: QueuedDraft) {
        let draft = std::slice::from_ref(&queued.draft);
        match self.store.append_waiting(draft, self.clock.now()).await {
            Ok(appended) => self.announce(appended.into_iter().zip([queued]).collect()).await,
            Err(error) => self.fail(vec![queued], &error),
        }
    }

    /// Publishes the events of the committed messages in commit order, then answers the senders.
    async fn announce(&self, decided: Vec<(Result<Sent>, QueuedDraft)>) {
        faults::at(Point::Committed).await;

        let is_unknown =
            |sent: &Result<Sent>| matches!(sent, Err(error) if error.code == Code::Unavailable);
        self.request_resync(
            decided.iter().filter(|(sent, _)| is_unknown(sent)).map(|(_, queued)| &queued.draft),
        );

        let (mut sends, mut messages) = (0, Vec::with_capacity(decided.len()));
        for (sent, _) in &decided {
            match sent {
                Ok(Sent::New(message)) => {
                    sends += 1;
                    messages.push(message);
                }
                // The replica of the first send may have died before it published the event. Hubs
                // drop a revision that they delivered before.
                Ok(Sent::Repeated(message))
                    if message.edited_at.is_none() && message.removed_at.is_none() =>
                {
                    messages.push(message);
                }
                _ => {}
            }
        }

        // A message that the store placed step by step has a later revision than messages after it
        // in the batch.
        messages.sort_by_key(|message| message.rev);
        for message in messages {
            let change = Change::MessageSent(message.clone());
            self.bus.publish(Event::Chat(ChatEvent {
                chat_id: message.chat_id,
                rev: message.rev,
                change,
            }));
        }
        metrics::messages_sent(sends);
        faults::at(Point::Announced).await;

        for (sent, queued) in decided {
            queued.answer(sent);
        }
    }

    /// Answers the senders of drafts whose commit failed.
    pub fn fail(&self, queued: Vec<QueuedDraft>, error: &Error) {
        self.request_resync(queued.iter().map(|queued| &queued.draft));

        for queued in queued {
            queued.refuse(error.clone());
        }
    }

    /// Requests a resync of the chats of these drafts. The outcome of the drafts is unknown: they
    /// may be committed, and without a retry by the client no event of them is published.
    fn request_resync<'a>(&self, drafts: impl IntoIterator<Item = &'a Draft>) {
        let chats: HashSet<ChatId> = drafts.into_iter().map(|draft| draft.chat_id).collect();
        if !chats.is_empty() {
            self.bus.publish(Event::Resync(chats.into_iter().map(Topic::Chat).collect()));
        }
    }
}
