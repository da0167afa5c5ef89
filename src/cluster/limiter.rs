//! Rate limits: how often somebody may do something, over all replicas together.

use super::BoxFuture;
use crate::model::limits::Rate;
use crate::model::{Result, Timestamp};

/// Counts what somebody does (GCRA: a burst, then one each pause).
///
/// **Exact**: however many replicas ask at once, the burst is what was said. **Atomic**: a refused take takes nothing.
pub trait RateLimiter: Send + Sync {
    /// Takes one under `key` at `now`.
    ///
    /// # Errors
    /// `rate_limited` with the time until one is free.
    fn take<'a>(&'a self, rate: Rate, key: &'a str, now: Timestamp) -> BoxFuture<'a, Result<()>>;
}
