//! Cleanup on a timer: removal of rows that expired or that no row refers to any more.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::removals::Removals;
use super::sessions::Sessions;
use crate::metrics;
use crate::model::clock::JumpWatch;
use crate::model::limits::{CLEANUP_EVERY, CLEANUP_GRACE};
use crate::model::{Clock, Result, Timestamp};
use crate::store::{Store, Swept};

/// The service that cleans up.
pub struct Cleanup {
    store: Store,
    sessions: Arc<Sessions>,
    removals: Arc<Removals>,
    clock: Clock,
    /// Starts a round before the timer does.
    due: Arc<Notify>,
    /// Whether the clock can be trusted.
    jumps: Mutex<JumpWatch>,
}

impl Cleanup {
    pub(super) fn new(
        store: Store,
        sessions: Arc<Sessions>,
        removals: Arc<Removals>,
        clock: Clock,
        due: Arc<Notify>,
    ) -> Self {
        Self { store, sessions, removals, clock, due, jumps: Mutex::default() }
    }

    /// Resumes removals of accounts that a crash interrupted, then cleans up, every
    /// [`CLEANUP_EVERY`] or when asked, until `stop`. Several replicas may do so at the same time:
    /// the batches are short, and a replica skips what another has removed.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            if let Err(error) = self.removals.resume().await {
                tracing::warn!(%error, "failed to finish the removal of an account; retried in the next round");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.due.notified() => {}
                () = tokio::time::sleep(CLEANUP_EVERY) => {}
            }
            if let Err(error) = self.run_once().await {
                tracing::warn!(%error, "the cleanup of expired rows failed; retried in the next round");
            }
        }
    }

    /// Removes everything that is due, batch by batch, and returns the totals. Expired rows are
    /// kept for [`CLEANUP_GRACE`], and stay while the clock is in doubt.
    ///
    /// # Errors
    /// `unavailable`; the batches that were removed before stay removed.
    pub async fn run_once(&self) -> Result<Swept> {
        let due = self.expired_by().await?;
        let mut total = Swept::default();
        loop {
            let removed = match due {
                Some(due) => self.store.sweep(due).await?,
                None => self.store.sweep_removed().await?,
            };
            metrics::swept("sessions", removed.sessions.len() as u64);
            metrics::swept("invites", removed.invites);
            metrics::swept("chats", removed.chat_rows);
            metrics::swept("tombstones", removed.tombstones);

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

    /// The time before which expired rows may be removed; `None` while the clock is in doubt. The
    /// database's clock is read now if it has one: the machine's clock may have jumped since it was
    /// last set by the database.
    async fn expired_by(&self) -> Result<Option<Timestamp>> {
        if let Some(time) = self.store.time().await? {
            self.clock.follow(time);
        }
        let now = self.clock.now();
        let by_hand = self.clock.advanced_ms();
        let shown = Timestamp::from_ms(now.as_ms().saturating_sub(by_hand));
        if self.jumps.lock().is_steady(shown, Instant::now()) {
            return Ok(Some(now.minus(CLEANUP_GRACE)));
        }

        metrics::sweep_skipped();
        tracing::warn!(
            "the clock has jumped: expired rows are not removed until the clock was steady for an hour"
        );
        Ok(None)
    }
}
