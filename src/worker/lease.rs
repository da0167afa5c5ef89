//! A lease in the database, under which one replica at a time does a kind of work.
//!
//! A lease is no lock: a replica that stalls for longer than [`WORKER_LEASE`] does not notice that
//! another replica has taken its lease until it renews it. So the work must be safe to do twice at
//! the same time. The lease saves the cost of doing it on every replica.

use std::time::Duration;

use rand::RngExt;
use uuid::Uuid;

use crate::metrics;
use crate::model::limits::{WORKER_LEASE, WORKER_LEASE_RENEWAL};
use crate::model::{Clock, Result, Timestamp};
use crate::store::Store;

/// The lease of one kind of work, as one replica sees it.
pub struct Lease {
    store: Store,
    clock: Clock,
    worker: &'static str,
    holder: Uuid,
}

/// The result of an attempt to work under a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The work is done.
    Done(T),
    /// Another replica has the lease, or has done the work recently.
    Elsewhere,
    /// The lease was lost while the work was in progress. The work was dropped.
    Lost,
}

impl Lease {
    /// The lease of `worker`. Each instance is a holder of its own.
    pub fn new(store: Store, clock: Clock, worker: &'static str) -> Self {
        let holder = Uuid::from_u128(rand::rng().random());
        Self { store, clock, worker, holder }
    }

    /// Does `work` if the lease is free, and if the work was not finished within `pause`. Renews
    /// the lease meanwhile, and releases it at the end, also after an error.
    ///
    /// # Errors
    /// Those of `work`; `unavailable`.
    pub async fn run<T>(
        &self,
        pause: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Outcome<T>> {
        let now = self.clock.now();
        let taken = self
            .store
            .take_worker_lease(
                self.worker,
                self.holder,
                (now, now.plus(WORKER_LEASE)),
                now.minus(pause),
            )
            .await?;
        if !taken {
            return Ok(Outcome::Elsewhere);
        }

        tokio::select! {
            result = work => {
                let finished_at = result.is_ok().then(|| self.clock.now());
                self.release(finished_at).await;
                result.map(Outcome::Done)
            }
            () = self.keep() => {
                metrics::worker_lease_lost(self.worker);
                Ok(Outcome::Lost)
            }
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self) {
        let mut expires_at = self.clock.now().plus(WORKER_LEASE);
        while self.clock.now() < expires_at {
            tokio::time::sleep(WORKER_LEASE_RENEWAL).await;

            let now = self.clock.now();
            let next = now.plus(WORKER_LEASE);
            match self.store.renew_worker_lease(self.worker, self.holder, (now, next)).await {
                Ok(true) => expires_at = next,
                Ok(false) => return,
                // Retried until the lease expires.
                Err(error) => {
                    tracing::warn!(worker = self.worker, %error, "failed to renew a lease");
                }
            }
        }
    }

    async fn release(&self, finished_at: Option<Timestamp>) {
        let released = self.store.release_worker_lease(self.worker, self.holder, finished_at).await;
        if let Err(error) = released {
            tracing::warn!(
                worker = self.worker,
                %error,
                "failed to release a worker's lease; it expires by itself"
            );
        }
    }
}
