//! Rate limits that all replicas count together.

use std::sync::Arc;

use crate::cluster::{Permit, RateLimiter};
use crate::metrics;
use crate::model::limits::Rate;
use crate::model::{Clock, Result};

/// The cluster's rate limiter, and whether the operator wants its limits. Clones share the counts.
#[derive(Clone)]
pub(super) struct RateLimits {
    pub limiter: Arc<dyn RateLimiter>,
    pub clock: Clock,
    pub enabled: bool,
}

impl RateLimits {
    /// Counts one event under `key`.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn count(&self, rate: Rate, key: &str) -> Result<()> {
        self.take(rate, key).await.map(drop)
    }

    /// Takes a permit under `key`, which [`RateLimits::give_back`] can return. `None` where rate
    /// limits are off.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn take(&self, rate: Rate, key: &str) -> Result<Option<Permit>> {
        if !self.enabled {
            return Ok(None);
        }
        let taken = self.limiter.take(rate, key, self.clock.now()).await;
        if taken.is_err() {
            metrics::rate_limited(rate.name);
        }
        taken.map(Some)
    }

    /// Returns a permit: its event counts no longer.
    pub async fn give_back(&self, rate: Rate, key: &str, permit: Permit) {
        self.limiter.give_back(rate, key, permit, self.clock.now()).await;
    }

    /// Whether `rate` allows one more event under `key`, which then counts. Unlike the limits, a
    /// pause that is part of the protocol holds where rate limits are off, and its end is no error.
    pub async fn allows_after_pause(&self, rate: Rate, key: &str) -> bool {
        self.limiter.take(rate, key, self.clock.now()).await.is_ok()
    }
}
