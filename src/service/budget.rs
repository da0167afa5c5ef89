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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Service;
use crate::metrics;
use crate::model::limits::{ARRIVALS, BUDGET_KEYS_MAX, Bucket, FRAMES_AT_ONCE_PER_USER, READS, Rate, TYPING};
use crate::model::{ChatId, Error, Result, Timestamp, UserId};

/// The budgets of all users of one replica.
pub(super) struct Budgets {
    reads: Rates<UserId>,
    arrivals: Rates<UserId>,
    typing: Rates<(UserId, ChatId)>,
    frames: FramePermits,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            reads: Rates::new(READS),
            arrivals: Rates::new(ARRIVALS),
            typing: Rates::new(TYPING),
            frames: FramePermits::new(FRAMES_AT_ONCE_PER_USER),
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
        self.count(&self.budgets.reads, user_id)
    }

    /// Counts one connection or `sync` of a user. It is counted on this replica alone.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn count_arrival(&self, user_id: UserId) -> Result<()> {
        self.count(&self.budgets.arrivals, user_id)
    }

    /// The permits of frames that work on the database. They bound what runs at once, so they hold even where rate
    /// limits are off.
    pub fn frame_permits(&self) -> &FramePermits {
        &self.budgets.frames
    }

    fn count(&self, rates: &Rates<UserId>, user_id: UserId) -> Result<()> {
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

/// Permits for what runs at once, so many for each user. Clones share them.
#[derive(Clone)]
pub struct FramePermits {
    shared: Arc<Shared>,
}

struct Shared {
    each: usize,
    /// The users who hold or wait for a permit now.
    users: Mutex<HashMap<UserId, Arc<Semaphore>>>,
}

/// One permit of a user. It is free again when this is dropped, so the work that it is for must hold it.
pub struct FramePermit {
    // In this order: the seat that goes last counts who still uses the user's permits.
    _permit: OwnedSemaphorePermit,
    _seat: Seat,
}

/// One who holds or waits for a permit. The last one of a user takes the user's entry along.
struct Seat {
    shared: Arc<Shared>,
    user_id: UserId,
    permits: Option<Arc<Semaphore>>,
}

impl FramePermits {
    /// So many permits for each user.
    pub fn new(each: usize) -> Self {
        Self { shared: Arc::new(Shared { each, users: Mutex::default() }) }
    }

    /// Waits for a permit. The first to be polled is the first to get one.
    ///
    /// # Errors
    /// None in practice: the permits are never withdrawn.
    pub fn take(&self, user_id: UserId) -> impl Future<Output = Result<FramePermit>> + Send + use<> {
        let (seat, permits) = self.seat(user_id);
        async move {
            let permit = permits.acquire_owned().await.map_err(Error::internal)?;
            Ok(FramePermit { _permit: permit, _seat: seat })
        }
    }

    fn seat(&self, user_id: UserId) -> (Seat, Arc<Semaphore>) {
        let mut users = self.shared.users.lock();
        let permits = users.entry(user_id).or_insert_with(|| Arc::new(Semaphore::new(self.shared.each))).clone();
        let seat = Seat { shared: self.shared.clone(), user_id, permits: Some(permits.clone()) };
        (seat, permits)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut users = self.shared.users.lock();
        drop(self.permits.take());
        // Handed out under this lock only, so a count of one can't grow meanwhile.
        if users.get(&self.user_id).is_some_and(|permits| Arc::strong_count(permits) == 1) {
            users.remove(&self.user_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn user(number: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn a_user_has_so_many_permits_and_leaves_nothing_behind() {
        let permits = FramePermits::new(2);
        let held = [permits.take(user(1)).await.unwrap(), permits.take(user(1)).await.unwrap()];
        let mut waiting = Box::pin(permits.take(user(1)));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(permits.take(user(2)).now_or_never().is_some(), "another user has permits of their own");

        drop(held);
        waiting.await.map(drop).unwrap();
        assert!(permits.shared.users.lock().is_empty());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let permits = FramePermits::new(1);
        let held = permits.take(user(1)).await.unwrap();
        let mut given_up = Box::pin(permits.take(user(1)));
        assert!((&mut given_up).now_or_never().is_none());
        drop(held);
        drop(given_up);
        assert!(permits.shared.users.lock().is_empty());
        assert!(permits.take(user(1)).now_or_never().is_some());
    }

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
