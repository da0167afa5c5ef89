//! What one user may take of a replica: how often they may read and arrive, and how many of their frames are worked on
//! at once.
//!
//! Rates are counted in the memory of this replica, because a read must not cost a round trip to Redis. A user whose
//! requests are spread over several replicas may therefore read as much on each: every replica guards its own
//! connections to the database.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Service;
use super::permits::{UserPermit, UserPermits};
use crate::metrics;
use crate::model::limits::{
    ARRIVALS, BUDGET_KEYS_MAX, Bucket, FRAMES_AT_ONCE_PER_USER, READS, REQUEST_MAX, Rate, TYPING,
};
use crate::model::{ChatId, Error, Result, Timestamp, UserId};

/// The budgets of all users of one replica.
pub(super) struct Budgets {
    reads: Rates<UserId>,
    arrivals: Rates<UserId>,
    typing: Rates<(UserId, ChatId)>,
    frames: Arc<UserPermits>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            reads: Rates::new(READS),
            arrivals: Rates::new(ARRIVALS),
            typing: Rates::new(TYPING),
            frames: UserPermits::new(FRAMES_AT_ONCE_PER_USER),
        }
    }
}

impl Budgets {
    /// Whether this replica passed on no `typing` of the user in this chat lately. If so, it counts as passed on.
    pub fn takes_typing(&self, user_id: UserId, chat_id: ChatId, now: Timestamp) -> bool {
        self.typing.take((user_id, chat_id), now).is_ok()
    }
}

impl Service {
    /// Counts one read of a user. It is counted on this replica alone.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn count_read(&self, user_id: UserId) -> Result<()> {
        self.count_within(&self.budgets.reads, user_id)
    }

    /// Counts one connection or `sync` of a user. It is counted on this replica alone.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn count_arrival(&self, user_id: UserId) -> Result<()> {
        self.count_within(&self.budgets.arrivals, user_id)
    }

    /// A permit for a frame of this user that works on the database. The first to be polled is the first to get one.
    /// Permits bound what runs at once, so they hold even where rate limits are off.
    ///
    /// # Errors
    /// `unavailable` if none was free for as long as a frame may take.
    pub fn frame_permit(&self, user_id: UserId) -> impl Future<Output = Result<UserPermit>> + Send + use<> {
        let permits = self.budgets.frames.clone();
        async move { permits.acquire(user_id, REQUEST_MAX).await.ok_or_else(Error::overloaded) }
    }

    fn count_within(&self, rates: &Rates<UserId>, user_id: UserId) -> Result<()> {
        if !self.limits.rate_limits {
            return Ok(());
        }
        let taken = rates.take(user_id, self.clock.now());
        if taken.is_err() {
            metrics::rate_limited(rates.rate.name);
        }
        taken
    }
}

/// Counters under one [`Rate`], one for each key.
struct Rates<K> {
    rate: Rate,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Rates<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one under `key`.
    fn take(&self, key: K, now: Timestamp) -> Result<()> {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUDGET_KEYS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
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
    fn counters_beyond_the_bound_are_forgotten() {
        let rates = Rates::new(TYPING);
        let now = Timestamp::from_ms(1);
        for number in 0..=BUDGET_KEYS_MAX {
            rates.take(number, now).unwrap();
        }
        assert!(rates.buckets.lock().len() <= BUDGET_KEYS_MAX);
    }
}
