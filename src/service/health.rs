//! Health of the database. One task pings it, so that probes cost no query and never wait for other
//! requests.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::limits::{HEALTH_EVERY, HEALTH_STALE};
use crate::model::{Error, Result};
use crate::store::Store;

/// The result of the latest ping of the database.
#[derive(Debug)]
pub struct Health {
    latest: Mutex<Latest>,
}

#[derive(Debug)]
struct Latest {
    result: Result<()>,
    last_success: Instant,
}

impl Health {
    /// The health of a database that has just answered.
    pub fn good() -> Arc<Self> {
        Arc::new(Self {
            latest: Mutex::new(Latest { result: Ok(()), last_success: Instant::now() }),
        })
    }

    /// Pings the database every [`HEALTH_EVERY`] until `stop`. [`Store::ping`] bounds each ping.
    pub async fn watch(self: Arc<Self>, store: Store, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                result = store.ping() => self.note(result),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(HEALTH_EVERY) => {}
            }
        }
    }

    /// The latest result, without a ping.
    ///
    /// # Errors
    /// `unavailable` if the latest ping failed, or the latest success is older than
    /// [`HEALTH_STALE`].
    pub fn check(&self) -> Result<()> {
        self.check_at(Instant::now())
    }

    fn check_at(&self, now: Instant) -> Result<()> {
        let latest = self.latest.lock();
        latest.result.clone()?;
        if now > latest.last_success + HEALTH_STALE { Err(Error::overloaded()) } else { Ok(()) }
    }

    fn note(&self, result: Result<()>) {
        let mut latest = self.latest.lock();
        if result.is_ok() {
            latest.last_success = Instant::now();
        }
        latest.result = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_counts_until_the_next_failure_or_until_it_is_stale() {
        let health = Health::good();
        health.note(Err(Error::overloaded()));
        assert!(health.check().is_err());
        health.note(Ok(()));
        assert!(health.check().is_ok());
        assert!(
            health.check_at(Instant::now() + HEALTH_STALE * 2).is_err(),
            "the task that pings hangs or has ended"
        );
    }
}
