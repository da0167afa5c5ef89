//! Budgets of each user on a replica: the rates of reads and arrivals, and the number of concurrent
//! requests and frames. An arrival is a connection or a `sync`.
//!
//! Reads and arrivals are counted in this replica's memory, because a read must not cost a round
//! trip to Redis. So a user has the same budget again on every other replica. This suffices,
//! because the budgets protect the database connections of one replica.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::admission::RequestGuard;
use super::permits::{UserPermit, UserPermits};
use super::rates::RateLimits;
use crate::metrics;
use crate::model::limits::{
    ARRIVALS, BUDGET_KEYS_MAX, Bucket, FRAMES_AT_ONCE_PER_USER, READS, REQUEST_MAX, Rate, TYPING,
    USER_REQUEST_WAIT_MAX, USER_REQUESTS_MAX, WATCHES,
};
use crate::model::session::Caller;
use crate::model::{ChatId, Error, Result, Timestamp, UserId};

/// The budgets of all users of one replica.
pub struct Budgets {
    rates: RateLimits,
    reads: Counters<UserId>,
    arrivals: Counters<UserId>,
    typing: Counters<(UserId, ChatId)>,
    requests: Arc<UserPermits>,
    frames: Arc<UserPermits>,
}

impl Budgets {
    pub(super) fn new(rates: RateLimits) -> Self {
        Self {
            rates,
            reads: Counters::new(READS),
            arrivals: Counters::new(ARRIVALS),
            typing: Counters::new(TYPING),
            requests: UserPermits::new(USER_REQUESTS_MAX),
            frames: UserPermits::new(FRAMES_AT_ONCE_PER_USER),
        }
    }

    /// Takes one of the caller's [`USER_REQUESTS_MAX`] permits into `guard`, and gives the address
    /// slots of `guard` back.
    ///
    /// # Errors
    /// `unavailable` if no permit is free within [`USER_REQUEST_WAIT_MAX`].
    pub async fn begin_request(&self, caller: Caller, guard: &RequestGuard) -> Result<()> {
        guard.authenticated();
        let start = Instant::now();
        let permit = self.requests.acquire(caller.user_id, USER_REQUEST_WAIT_MAX).await;
        let has_permit = permit.is_some();
        guard.keep_permit(permit, start.elapsed());

        if has_permit {
            return Ok(());
        }
        metrics::request_refused("requests_per_user");
        Err(Error::overloaded())
    }

    /// A permit for a frame of this user that uses the database. Callers get permits in the order
    /// in which their futures are first polled. Permits bound concurrent work, so they apply even
    /// if rate limits are off.
    ///
    /// # Errors
    /// `unavailable` if no permit is free within [`REQUEST_MAX`].
    pub fn frame_permit(
        &self,
        user_id: UserId,
    ) -> impl Future<Output = Result<UserPermit>> + Send + use<> {
        let permits = self.frames.clone();
        async move { permits.acquire(user_id, REQUEST_MAX).await.ok_or_else(Error::overloaded) }
    }

    /// Counts one read of a user on this replica.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn count_read(&self, user_id: UserId) -> Result<()> {
        self.count(&self.reads, user_id)
    }

    /// Counts one connection or `sync` of a user on this replica.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn count_arrival(&self, user_id: UserId) -> Result<()> {
        self.count(&self.arrivals, user_id)
    }

    /// Counts one `watch_presence` of the caller over all replicas, because it costs queries.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn count_watch(&self, caller: Caller) -> Result<()> {
        self.rates.count(WATCHES, &caller.user_id.to_string()).await
    }

    /// Whether this replica accepts a `typing` of the user in this chat. It accepts one in each
    /// pause of [`TYPING`].
    pub(super) fn accepts_typing(&self, user_id: UserId, chat_id: ChatId) -> bool {
        self.typing.take((user_id, chat_id), self.rates.clock.now()).is_ok()
    }

    fn count(&self, counters: &Counters<UserId>, user_id: UserId) -> Result<()> {
        if !self.rates.enabled {
            return Ok(());
        }
        let taken = counters.take(user_id, self.rates.clock.now());
        if taken.is_err() {
            metrics::rate_limited(counters.rate.name);
        }
        taken
    }
}

/// Counters under one [`Rate`], one for each key.
struct Counters<K> {
    rate: Rate,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Counters<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Counts one event under `key`.
    ///
    /// # Errors
    /// `rate_limited`.
    fn take(&self, key: K, now: Timestamp) -> Result<()> {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUDGET_KEYS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        // No bucket is idle: dropping all of them bounds the memory.
        if buckets.len() >= BUDGET_KEYS_MAX {
            buckets.clear();
        }

        buckets.entry(key).or_default().take(self.rate, now).map_err(Error::rate_limited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_beyond_the_bound_are_dropped() {
        let counters = Counters::new(TYPING);
        let now = Timestamp::from_ms(1);
        for number in 0..=BUDGET_KEYS_MAX {
            counters.take(number, now).unwrap();
        }
        assert!(counters.buckets.lock().len() <= BUDGET_KEYS_MAX);
    }
}
