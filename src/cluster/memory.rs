//! The cluster traits for a single replica: all state is in this process.

use std::collections::HashMap;
use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;

use super::bus::BusSender;
use super::presence::ConnectionSlots;
use super::{
    Arrival, BoxFuture, Bus, BusInbox, CacheTicket, Entered, Permit, Presence, RateLimiter,
    SessionCache, TooMany,
};
use crate::model::limits::{Bucket, LIMITER_KEYS_MAX, Rate, SESSION_CACHE_LIFE, SESSION_CACHE_MAX};
use crate::model::session::Caller;
use crate::model::token::TokenHash;
use crate::model::{Error, Event, Result, Timestamp, Topic, UserId};

/// A bus with one subscriber: the hub of this process.
#[derive(Debug)]
pub struct MemoryBus(BusSender);

impl MemoryBus {
    /// Returns the bus and the inbox of its hub.
    pub fn new() -> (Self, BusInbox) {
        let (sender, inbox) = BusSender::new();
        (Self(sender), inbox)
    }
}

impl Bus for MemoryBus {
    fn publish(&self, event: Event) {
        self.0.send(Arrival::Event(event));
    }

    /// Does nothing: the hub gets all events.
    fn follow(&self, _topic: Topic) {}

    fn unfollow(&self, _topic: Topic) {}
}

/// Rate limits, counted in this process.
#[derive(Debug, Default)]
pub struct MemoryRateLimiter {
    buckets: Mutex<HashMap<(&'static str, String), Bucket>>,
}

impl RateLimiter for MemoryRateLimiter {
    fn take<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Permit>> {
        let mut buckets = self.buckets.lock();

        // A full bucket limits nothing, so it is removed first. If the map is still too large, all
        // counts start again: memory is bounded, the limits are not exact.
        if buckets.len() >= LIMITER_KEYS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if buckets.len() >= LIMITER_KEYS_MAX {
            buckets.clear();
        }

        let bucket = buckets.entry((rate.name, key.to_owned())).or_default();
        let taken = bucket
            .take(rate, now)
            .map(|()| Permit { full_at: bucket.full_at(), counted_locally: true });
        Box::pin(ready(taken.map_err(Error::rate_limited)))
    }

    fn give_back<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        permit: Permit,
        now: Timestamp,
    ) -> BoxFuture<'a, ()> {
        if let Some(bucket) = self.buckets.lock().get_mut(&(rate.name, key.to_owned())) {
            bucket.give_back(rate, permit.full_at, now);
        }
        Box::pin(ready(()))
    }
}

/// Resolved tokens, cached in this process.
pub struct MemorySessionCache {
    callers: Cache<TokenHash, Caller>,
    /// Calls of [`SessionCache::forget`] so far.
    forgets: AtomicU64,
}

impl Default for MemorySessionCache {
    fn default() -> Self {
        Self {
            callers: Cache::builder()
                .max_capacity(SESSION_CACHE_MAX)
                .time_to_live(SESSION_CACHE_LIFE)
                .build(),
            forgets: AtomicU64::new(0),
        }
    }
}

impl SessionCache for MemorySessionCache {
    fn get(&self, token: TokenHash) -> BoxFuture<'_, Result<Caller, CacheTicket>> {
        let ticket = CacheTicket::at(self.forgets.load(Ordering::SeqCst));
        Box::pin(ready(self.callers.get(&token).ok_or(ticket)))
    }

    fn put(&self, token: TokenHash, caller: Caller, ticket: CacheTicket) -> BoxFuture<'_, ()> {
        // Inserted before the count is read: a concurrent `forget` either counted before that, or
        // removes the inserted entry itself.
        self.callers.insert(token, caller);
        if self.forgets.load(Ordering::SeqCst) != ticket.forgets {
            self.callers.invalidate(&token);
        }
        Box::pin(ready(()))
    }

    fn forget<'a>(&'a self, tokens: &'a [TokenHash]) -> BoxFuture<'a, ()> {
        self.forgets.fetch_add(1, Ordering::SeqCst);
        for token in tokens {
            self.callers.invalidate(token);
        }
        Box::pin(ready(()))
    }
}

/// Presence on a single replica: its connection slots are the only ones.
#[derive(Debug, Default)]
pub struct MemoryPresence(ConnectionSlots);

impl Presence for MemoryPresence {
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>> {
        Box::pin(ready(self.0.take(user, max).map(|(_, entered)| entered)))
    }

    fn leave(&self, user: UserId) -> bool {
        self.0.give_back(user)
    }

    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>> {
        Box::pin(ready(self.0.withdraw(users)))
    }

    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(ready(Ok(users.iter().map(|user| self.0.here(*user).is_some()).collect())))
    }

    fn connected(&self) -> Vec<UserId> {
        self.0.connected()
    }

    fn slot_ttl(&self) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::limits::WithoutRedis;

    const RATE: Rate = Rate {
        name: "test",
        burst: 3,
        every: Duration::from_secs(1),
        without_redis: WithoutRedis::Full,
    };

    #[tokio::test]
    async fn a_burst_is_exact_and_each_pause_frees_one_permit() {
        let limiter = MemoryRateLimiter::default();
        let at = Timestamp::from_ms;
        for _ in 0..3 {
            limiter.take(RATE, "ada", at(0)).await.unwrap();
        }

        let refused = limiter.take(RATE, "ada", at(100)).await.unwrap_err();
        assert_eq!(refused.retry_after_ms, Some(900));
        limiter.take(RATE, "bob", at(100)).await.unwrap();

        limiter.take(RATE, "ada", at(1000)).await.unwrap();
        assert!(limiter.take(RATE, "ada", at(1000)).await.is_err());
    }

    #[tokio::test]
    async fn a_caller_read_before_its_session_ended_is_not_cached() {
        let cache = MemorySessionCache::default();
        let token = TokenHash([7; 32]);
        let caller = Caller {
            user_id: crate::model::UserId::default(),
            session_id: crate::model::SessionId::default(),
            expires_at: Timestamp::from_ms(1),
            last_seen_at: Timestamp::from_ms(0),
            logins: 0,
        };

        let ticket = cache.get(token).await.unwrap_err();
        cache.forget(&[token]).await;
        cache.put(token, caller, ticket).await;
        assert!(cache.get(token).await.is_err());

        let ticket = cache.get(token).await.unwrap_err();
        cache.put(token, caller, ticket).await;
        assert!(cache.get(token).await.is_ok());
        cache.forget(&[token]).await;
        assert!(cache.get(token).await.is_err());
    }
}
