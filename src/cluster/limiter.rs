//! Rate limits: how often somebody may do something, over all replicas together.

use super::BoxFuture;
use crate::model::limits::Rate;
use crate::model::{Result, Timestamp};

/// What a take gave: proof for [`RateLimiter::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// When the bucket was to be full again after the take, by the clock that counted it.
    pub(super) full_at: Timestamp,
    /// Whether the replica counted it by itself, because Redis was away.
    pub(super) alone: bool,
}

/// Counts what somebody does (GCRA: a burst, then one each pause).
///
/// **Exact**: however many replicas ask at once, the burst is what was said. **Atomic**: a refused
/// take takes nothing. **Given back**: a permit that is given back counts no more, except for what
/// time has earned back by then. Without Redis it may be lost, and then counts.
pub trait RateLimiter: Send + Sync {
    /// Takes one under `key` at `now`.
    ///
    /// # Errors
    /// `rate_limited` with the time until one is free.
    fn take<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Permit>>;

    /// Gives back a permit that was taken under `key`, once.
    fn give_back<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        permit: Permit,
        now: Timestamp,
    ) -> BoxFuture<'a, ()>;
}
