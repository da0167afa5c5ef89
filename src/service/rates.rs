//! Rate limits that all replicas count together.

use std::sync::Arc;

use crate::cluster::{Permit, RateLimiter};
use crate::metrics;
use crate::model::limits::Rate;
use crate::model::{Clock, Result};

/// The cluster's rate limiter, and whether the operator enabled rate limits. Clones share the
/// counts.
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

    /// Takes a permit under `key`, which [`RateLimits::give_back`] can return. `None` if rate
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

    /// Returns a permit: its event no longer counts.
    pub async fn give_back(&self, rate: Rate, key: &str, permit: Permit) {
        self.limiter.give_back(rate, key, permit, self.clock.now()).await;
    }

    /// Whether the pause that `rate` demands between two events under `key` is over. If so, the
    /// next pause begins. Such a pause is part of the protocol: it applies even if rate limits are
    /// off, and an early event is not an error.
    pub async fn try_after_pause(&self, rate: Rate, key: &str) -> bool {
        self.limiter.take(rate, key, self.clock.now()).await.is_ok()
    }
}
