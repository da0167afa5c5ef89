//! Work that the clock asks for: removing what nothing refers to any more.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::Service;
use crate::metrics;
use crate::model::limits::{JOB_EVERY, SWEEP_GRACE};
use crate::model::{Result, Timestamp};
use crate::store::Swept;

impl Service {
    /// Goes on with what a crash interrupted, and runs the cleaning jobs now and then, or when something asks for them,
    /// until `stop`. Several replicas may: the batches are short, and what one removed the next does not find.
    pub async fn run_jobs(self: Arc<Self>, stop: CancellationToken) {
        loop {
            if let Err(error) = self.resume_removals().await {
                tracing::warn!(%error, "could not finish the removal of an account; it will be tried again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.jobs_due.notified() => {}
                () = tokio::time::sleep(JOB_EVERY) => {}
            }
            if let Err(error) = self.sweep_all().await {
                tracing::warn!(%error, "the cleaning job failed; it will be tried again");
            }
        }
    }

    /// Removes everything that is due, batch by batch. Returns the totals. What has expired is kept for
    /// [`SWEEP_GRACE`], and left alone while the clock is in doubt.
    ///
    /// # Errors
    /// `unavailable`; what was removed before stays removed.
    pub async fn sweep_all(&self) -> Result<Swept> {
        let due = self.expired_by().await?;
        let mut total = Swept::default();
        loop {
            let swept = match due {
                Some(due) => self.store.sweep(due).await?,
                None => self.store.sweep_removed().await?,
            };
            metrics::swept("sessions", swept.sessions.len() as u64);
            metrics::swept("invites", swept.invites);
            metrics::swept("chats", swept.chat_rows);
            metrics::swept("tombstones", swept.tombstones);
            total.invites += swept.invites;
            total.chat_rows += swept.chat_rows;
            total.tombstones += swept.tombstones;
            total.sessions.extend(swept.sessions.iter().copied());
            self.sessions_ended(swept.sessions).await;
            if !swept.more {
                return Ok(total);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Up to when what has expired may be removed; `None` while the clock is in doubt. The database's clock counts where it
    /// has one, asked just now: this machine's may have jumped since it was set by it.
    async fn expired_by(&self) -> Result<Option<Timestamp>> {
        if let Some(time) = self.store.time().await? {
            self.clock.follow(time);
        }
        let now = self.clock.now();
        let by_hand = self.clock.advanced_ms();
        let shown = Timestamp::from_ms(now.as_ms().saturating_sub(by_hand));
        if self.jumps.lock().is_steady(shown, Instant::now()) {
            return Ok(Some(now.minus(SWEEP_GRACE)));
        }

        metrics::sweep_skipped();
        tracing::warn!("the clock has jumped: what has expired is not removed until the clock was steady for an hour");
        Ok(None)
    }
}
