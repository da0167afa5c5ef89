//! Rate limits over all replicas. Each take is one atomic script, by the clock of Redis.

use std::sync::Arc;

use bb8_redis::redis::Script;

use super::link::{Down, Redis};
use super::seal::ClusterKey;
use crate::cluster::memory::MemoryRateLimiter;
use crate::cluster::{BoxFuture, Permit, RateLimiter};
use crate::metrics;
use crate::model::limits::Rate;
use crate::model::{Clock, Error, Result, Timestamp};

/// Takes a permit from the bucket of [`crate::model::limits::Bucket`], stored as the time at which
/// it is full again. Returns 0 and that time, or the milliseconds until a permit is free and 0.
/// ARGV: the pause per permit, the burst, and by how much this replica's clock was advanced. All
/// times are in milliseconds.
const TAKE: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
    local every, tolerance = tonumber(ARGV[1]), ARGV[1] * (ARGV[2] - 1)
    local from = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
    local over = from - now - tolerance
    if over > 0 then return {over, 0} end
    redis.call('SET', KEYS[1], string.format('%d', from + every),
        'PX', from + every - now + ARGV[3])
    return {0, from + every}";

/// Gives a permit back, as [`crate::model::limits::Bucket::give_back`] does. The expiry of the key
/// stays: at worst the key lives longer than needed. ARGV: the pause per permit, the `full_at` of
/// the permit, and by how much this replica's clock was advanced.
const GIVE_BACK: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
    local kept = redis.call('GET', KEYS[1])
    local unearned = math.min(tonumber(ARGV[1]), tonumber(ARGV[2]) - now)
    if kept and unearned > 0 then
        redis.call('SET', KEYS[1], string.format('%d', tonumber(kept) - unearned), 'KEEPTTL')
    end
    return 0";

/// Rate limits in Redis. Without Redis each replica counts in its own memory, with stricter limits
/// against guessing: [`Rate::without_redis`].
pub struct RedisRateLimiter {
    redis: Arc<Redis>,
    key: ClusterKey,
    clock: Clock,
    take: Script,
    give_back: Script,
    /// Counts while Redis is unreachable.
    local: MemoryRateLimiter,
}

impl RedisRateLimiter {
    /// Rate limits in this Redis.
    pub fn new(redis: Arc<Redis>, key: ClusterKey, clock: Clock) -> Self {
        let (take, give_back) = (Script::new(TAKE), Script::new(GIVE_BACK));
        Self { redis, key, clock, take, give_back, local: MemoryRateLimiter::default() }
    }

    fn name(&self, rate: Rate, key: &str) -> String {
        self.redis.key("rate", &format!("{}:{}", rate.name, self.key.pseudonym(rate.name, key)))
    }
}

impl RateLimiter for RedisRateLimiter {
    fn take<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Permit>> {
        Box::pin(async move {
            let mut call = self.take.prepare_invoke();
            call.key(self.name(rate, key));
            call.arg(every_ms(rate)).arg(rate.burst).arg(self.clock.advanced_ms());

            match self.redis.script::<(u64, i64)>("rate", &call).await {
                Ok((0, full_at)) => {
                    Ok(Permit { full_at: Timestamp::from_ms(full_at), counted_locally: false })
                }
                Ok((wait_ms, _)) => Err(Error::rate_limited(wait_ms)),
                Err(Down) => {
                    metrics::limiter_without_redis(rate.name);
                    self.local.take(rate.without_redis(), key, now).await
                }
            }
        })
    }

    fn give_back<'a>(
        &'a self,
        rate: Rate,
        key: &'a str,
        permit: Permit,
        now: Timestamp,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if permit.counted_locally {
                return self.local.give_back(rate.without_redis(), key, permit, now).await;
            }

            let mut call = self.give_back.prepare_invoke();
            call.key(self.name(rate, key));
            call.arg(every_ms(rate)).arg(permit.full_at.as_ms()).arg(self.clock.advanced_ms());
            // If the call fails, the permit stays counted: the limit is stricter, never laxer.
            let _: Result<u64, Down> = self.redis.script("rate_back", &call).await;
        })
    }
}

fn every_ms(rate: Rate) -> u64 {
    u64::try_from(rate.every.as_millis()).unwrap_or(u64::MAX)
}
