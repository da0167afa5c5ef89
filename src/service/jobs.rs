//! Work that the clock asks for: removing what nothing refers to any more.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Service;
use crate::metrics;
use crate::model::Result;
use crate::model::limits::JOB_EVERY;
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

    /// Removes everything that is due, batch by batch. Returns the totals.
    ///
    /// # Errors
    /// `unavailable`; what was removed before stays removed.
    pub async fn sweep_all(&self) -> Result<Swept> {
        let mut total = Swept::default();
        loop {
            let swept = self.store.sweep(self.clock.now()).await?;
            metrics::swept(&swept);
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
}
