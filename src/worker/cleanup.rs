//! Periodic cleanup under a lease: deletes expired rows, old tombstones and the rows of removed
//! chats.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lease::{Lease, Outcome};
use crate::metrics;
use crate::model::jump_watch::JumpWatch;
use crate::model::limits::{CLEANUP_EVERY, CLEANUP_GRACE, CLEANUP_RETRY};
use crate::model::{Clock, Result, Timestamp};
use crate::service::{Removals, Services, Sessions};
use crate::store::{DeletedRows, Store};

/// The worker that deletes expired rows.
pub struct Cleanup {
    store: Store,
    sessions: Arc<Sessions>,
    removals: Arc<Removals>,
    clock: Clock,
    lease: Lease,
    /// Starts a round before the timer fires.
    due: Arc<Notify>,
    /// Detects jumps of the clock.
    jumps: Mutex<JumpWatch>,
}

impl Cleanup {
    /// The worker of this replica.
    pub fn new(store: Store, services: &Services, clock: Clock) -> Self {
        Self {
            lease: Lease::new(store.clone(), clock.clone(), "cleanup"),
            store,
            sessions: services.sessions.clone(),
            removals: services.removals.clone(),
            clock,
            due: services.cleanup_due.clone(),
            jumps: Mutex::default(),
        }
    }

    /// Resumes removals of accounts that a crash interrupted. Then does a round every
    /// [`CLEANUP_EVERY`], or at once when a chat was removed, until `stop`. One replica at a time
    /// does a round.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let resumed = self.lease.run(Duration::ZERO, self.removals.resume()).await;
        if let Err(error) = resumed {
            tracing::warn!(%error, "failed to resume the removal of accounts; retried in a minute");
        }

        // Another replica may have done the round of this interval.
        let (regular, at_once) = (CLEANUP_EVERY / 2, Duration::ZERO);
        let (mut pause, mut wait) = (regular, CLEANUP_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.due.notified() => pause = at_once,
                () = tokio::time::sleep(wait) => {}
            }

            let round = async {
                self.removals.resume().await?;
                self.run_once().await
            };
            (pause, wait) = match self.lease.run(pause, round).await {
                // The round of the other replica may have begun before the chat was removed.
                Ok(Outcome::Elsewhere) if pause == at_once => (at_once, CLEANUP_RETRY),
                Ok(_) => (regular, CLEANUP_EVERY),
                Err(error) => {
                    tracing::warn!(%error, "the cleanup failed; retried in a minute");
                    (regular, CLEANUP_EVERY)
                }
            };
        }
    }

    /// Deletes all rows that are due, in batches, and returns the totals. Expired rows are due
    /// after [`CLEANUP_GRACE`], but never while the clock is not steady.
    ///
    /// # Errors
    /// `unavailable`; the earlier batches stay deleted.
    pub async fn run_once(&self) -> Result<DeletedRows> {
        let due = self.expired_by().await?;
        let mut total = DeletedRows::default();

        loop {
            let removed = match due {
                Some(due) => self.store.delete_expired(due).await?,
                None => self.store.delete_removed_chats().await?,
            };
            metrics::rows_cleaned_up("sessions", removed.sessions.len() as u64);
            metrics::rows_cleaned_up("invites", removed.invites);
            metrics::rows_cleaned_up("chats", removed.chat_rows);
            metrics::rows_cleaned_up("tombstones", removed.tombstones);

            total.invites += removed.invites;
            total.chat_rows += removed.chat_rows;
            total.tombstones += removed.tombstones;
            total.sessions.extend(removed.sessions.iter().copied());

            self.sessions.announce_ended(removed.sessions).await;
            if !removed.more {
                return Ok(total);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Rows that expired before this time are due. `None` while the clock is not steady. Reads the
    /// database's clock first, if the database has one: the machine's clock may have jumped since
    /// the replica last compared the two.
    async fn expired_by(&self) -> Result<Option<Timestamp>> {
        if let Some(time) = self.store.time().await? {
            self.clock.follow(time);
        }

        let now = self.clock.now();
        // Tests advance the clock on purpose, which is no jump.
        let shown = Timestamp::from_ms(now.as_ms().saturating_sub(self.clock.advanced_ms()));
        if self.jumps.lock().is_steady(shown, Instant::now()) {
            return Ok(Some(now.minus(CLEANUP_GRACE)));
        }

        metrics::cleanup_skipped();
        tracing::warn!(
            "the clock jumped; expired rows are kept until it has been steady for an hour"
        );
        Ok(None)
    }
}
