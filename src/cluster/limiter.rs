//! Rate limits, counted over all replicas together.

use super::BoxFuture;
use crate::model::limits::Rate;
use crate::model::{Result, Timestamp};

/// A permit that was taken, to be passed to [`RateLimiter::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The time at which the bucket would be full again after the take, by the clock of the limiter
    /// that counted the permit.
    pub(super) full_at: Timestamp,
    /// Whether this replica counted the permit in its own memory, because Redis was unreachable.
    pub(super) counted_locally: bool,
}

/// Limits the rate of an action per key (GCRA: a burst, then one permit per pause).
///
/// **Exact**: the burst holds however many replicas take permits at once. **Atomic**: a refused
/// take counts nothing. **Given back**: a permit that is given back no longer counts. The part of
/// it that time has refilled by then is not refilled twice. If Redis fails, the return may be lost,
/// and the permit counts.
pub trait RateLimiter: Send + Sync {
    /// Takes a permit of `key` at `now`.
    ///
    /// # Errors
    /// `rate_limited`, with the time until a permit is free.
    fn take<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Permit>>;

    /// Gives back a permit of `key`. A permit must be given back at most once.
    fn give_back<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        permit: Permit,
        now: Timestamp,
    ) -> BoxFuture<'a, ()>;
}
