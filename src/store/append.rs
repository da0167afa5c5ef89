//! Sending: many messages to many chats in one commit.
//!
//! A batch locks the rows of its chats in the order of their ids. Under these locks it reads the
//! memberships, assigns an id and a rev to each message, and writes everything at once. On Postgres
//! one statement does all of that for the ordinary drafts ([`place`]). The drafts that this
//! statement leaves out, and all drafts on SQLite, go step by step ([`Store::append_checked`]),
//! which finds out why a draft is refused, or that its `client_id` was sent before. If two
//! transactions send one `client_id` at the same moment, the unique index rejects one of them; it
//! then goes step by step. This is rare.
//!
//! A chat that another transaction has locked must not delay the other chats of the batch. So
//! [`Store::try_append`] waits for a row lock only briefly. Then it skips the locked chats and
//! leaves their drafts to [`Store::append_waiting`]. The appenders have a pool of their own,
//! whose sessions are opened with that short `lock_timeout`, so the ordinary case pays no round
//! trip for it. SQLite has one writer, which meets no row locks.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::append_checked::{Attempted, message};
use super::append_postgres::{Locks, place};
use super::engine::Pool;
use super::{Db, Store, is_lock_timeout, is_unique_violation, lent, timed};
use crate::metrics;
use crate::model::faults::mutant;
use crate::model::message::{Draft, Sent};
use crate::model::{ChatId, Error, MessageId, Result, Rev, Timestamp};

/// The outcome of each draft, in the order of the drafts.
pub type Appended = Vec<Result<Sent>>;

impl Store {
    /// Sends drafts as [`Store::try_append`] does, then waits for the locks of the chats that it
    /// skipped.
    pub async fn append(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        let mut attempted = self.try_append(drafts, now).await?;

        let skipped = undecided(drafts, &attempted);
        if !skipped.is_empty() {
            let appended = self.append_waiting(&skipped, now).await?;
            fill(&mut attempted, appended.into_iter().map(Some));
        }

        Ok(attempted.into_iter().map(|sent| sent.unwrap_or_else(no_outcome)).collect())
    }

    /// Sends drafts in one commit or two, and appends each to its chat in the order given.
    ///
    /// A chat that another transaction holds for more than
    /// [`APPEND_LOCK_MAX`](crate::model::limits::APPEND_LOCK_MAX) is skipped: its drafts are
    /// `None`.
    ///
    /// # Errors
    /// The outer error means that, as far as is known, no draft was appended. The inner errors
    /// refuse single drafts: `chat_not_found`, `not_allowed`, `client_id_reused`,
    /// `message_not_found` for a `reply_to` that does not exist.
    pub async fn try_append(&self, drafts: &[Draft], now: Timestamp) -> Result<Attempted> {
        timed("append", || async {
            mutant!(SequenceOrder => return self.append_numbered_first(drafts, now).await);
            mutant!(AckBeforeCommit => return self.append_and_drop(drafts, now).await);
            match &self.appenders {
                Db::Postgres(pool) => self.append_at_once(pool, drafts, now).await,
                Db::Sqlite(_) => match self.append_checked(drafts, now, false, Locks::Wait).await {
                    Err(error) if is_unique_violation(&error) => {
                        self.append_checked(drafts, now, true, Locks::Wait).await
                    }
                    result => result,
                },
            }
        })
        .await
    }

    /// Sends drafts in one commit, and appends each to its chat in the order given. Waits for the
    /// chats' row locks for as long as a statement may take.
    ///
    /// # Errors
    /// As of [`Store::try_append`]; `unavailable` if a row lock was not released in time.
    pub async fn append_waiting(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        timed("append_waiting", || async {
            let attempted = self.append_checked(drafts, now, true, Locks::Wait).await?;
            Ok(attempted.into_iter().map(|sent| sent.unwrap_or_else(no_outcome)).collect())
        })
        .await
    }

    /// Sends drafts on Postgres, in one round trip in the ordinary case. The drafts that the
    /// statement leaves out then go step by step.
    async fn append_at_once(
        &self,
        pool: &Pool,
        drafts: &[Draft],
        now: Timestamp,
    ) -> Result<Attempted> {
        let mut attempted: Attempted = vec![None; drafts.len()];
        let repeating = chats_with_repeats(drafts);
        let ordinary: Vec<usize> = (0..drafts.len())
            .filter(|index| !repeating.contains(&drafts[*index].chat_id))
            .collect();
        let chosen: Vec<&Draft> = ordinary.iter().map(|index| &drafts[*index]).collect();

        let mut locks = Locks::WaitBriefly;
        let mut outcome = self.place_at_once(pool, &chosen, locks, now).await;
        if outcome.as_ref().is_err_and(is_lock_timeout) {
            metrics::append_lock_timed_out();
            locks = Locks::Skip;
            outcome = self.place_at_once(pool, &chosen, locks, now).await;
        }
        let positions = match outcome {
            Ok(positions) => positions,
            // Another transaction inserted one of these `client_id`s at the same moment.
            Err(error) if is_unique_violation(&error) => Vec::new(),
            // A lock of a table, since locked rows are skipped.
            Err(error) if is_lock_timeout(&error) => return Ok(attempted),
            Err(error) => return Err(error),
        };
        for (number, id, rev) in &positions {
            let index = ordinary[*number];
            attempted[index] = Some(Ok(Sent::New(message(&drafts[index], *id, *rev, now))));
        }

        let left_out = undecided(drafts, &attempted);
        if left_out.is_empty() {
            return Ok(attempted);
        }
        let mut checked = self.append_checked(&left_out, now, true, locks).await;
        if locks == Locks::WaitBriefly && checked.as_ref().is_err_and(is_lock_timeout) {
            metrics::append_lock_timed_out();
            checked = self.append_checked(&left_out, now, true, Locks::Skip).await;
        }

        match checked {
            Ok(checked) => fill(&mut attempted, checked.into_iter()),
            Err(error) if is_lock_timeout(&error) => {}
            Err(error) if positions.is_empty() => return Err(error),
            // The messages of the first commit exist, so their senders must get them as an answer.
            Err(error) => fill(&mut attempted, left_out.iter().map(|_| Some(Err(error.clone())))),
        }
        Ok(attempted)
    }

    async fn place_at_once(
        &self,
        pool: &Pool,
        drafts: &[&Draft],
        locks: Locks,
        now: Timestamp,
    ) -> Result<Vec<(usize, MessageId, Rev)>> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        self.statements.fetch_add(1, Ordering::Relaxed);
        lent!(pool, |db| place(db, drafts, false, locks, now))
    }
}

/// The drafts without an outcome.
fn undecided(drafts: &[Draft], attempted: &Attempted) -> Vec<Draft> {
    let undecided = attempted.iter().zip(drafts).filter(|(sent, _)| sent.is_none());
    undecided.map(|(_, draft)| draft.clone()).collect()
}

/// Sets the outcomes of the drafts that have none, in their order.
fn fill(attempted: &mut Attempted, outcomes: impl Iterator<Item = Option<Result<Sent>>>) {
    let undecided = attempted.iter_mut().filter(|sent| sent.is_none());
    for (sent, outcome) in undecided.zip(outcomes) {
        *sent = outcome;
    }
}

fn no_outcome() -> Result<Sent> {
    Err(Error::internal("a draft was neither appended nor refused"))
}

/// The chats in which one sender uses one `client_id` twice in this batch. Their drafts go step by
/// step, so that the first draft is appended and the second is recognised as a repetition.
fn chats_with_repeats(drafts: &[Draft]) -> HashSet<ChatId> {
    let mut keys = HashSet::with_capacity(drafts.len());
    let mut chats = HashSet::new();
    for draft in drafts {
        let Some(key) = draft.client_id.as_deref() else { continue };
        if !keys.insert((draft.chat_id, draft.sender_id, key)) {
            chats.insert(draft.chat_id);
        }
    }
    chats
}
