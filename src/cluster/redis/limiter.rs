//! Rate limits over all replicas: one atomic script a take, by the clock of Redis.

use std::sync::Arc;

use bb8_redis::redis::Script;

use super::link::{Down, Redis};
use super::seal::ClusterKey;
use crate::cluster::memory::MemoryRateLimiter;
use crate::cluster::{BoxFuture, Permit, RateLimiter};
use crate::metrics;
use crate::model::limits::Rate;
use crate::model::{Clock, Error, Result, Timestamp};

/// The bucket of [`crate::model::limits::Bucket`], kept as the time at which it will be full again.
/// Answers 0 and that time, or in how many milliseconds one will be free.
const TAKE: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
    local every, tolerance = tonumber(ARGV[1]), ARGV[1] * (ARGV[2] - 1)
    local from = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
    local over = from - now - tolerance
    if over > 0 then return {over, 0} end
    redis.call('SET', KEYS[1], string.format('%d', from + every), 'PX', from + every - now + ARGV[3])
    return {0, from + every}";

/// Gives one back, as [`crate::model::limits::Bucket::give_back`] does. The key's life stays: at
/// worst it lives longer than it needs to.
const GIVE_BACK: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
    local kept = redis.call('GET', KEYS[1])
    local unearned = math.min(tonumber(ARGV[1]), tonumber(ARGV[2]) - now)
    if kept and unearned > 0 then
        redis.call('SET', KEYS[1], string.format('%d', tonumber(kept) - unearned), 'KEEPTTL')
    end
    return 0";

/// Rate limits in Redis. Without Redis each replica counts for itself, what guards against guessing
/// more strictly: [`Rate::alone`].
pub struct RedisRateLimiter {
    redis: Arc<Redis>,
    key: ClusterKey,
    clock: Clock,
    take: Script,
    give_back: Script,
    alone: MemoryRateLimiter,
}

impl RedisRateLimiter {
    /// Rate limits in this Redis.
    pub fn new(redis: Arc<Redis>, key: ClusterKey, clock: Clock) -> Self {
        let (take, give_back) = (Script::new(TAKE), Script::new(GIVE_BACK));
        Self { redis, key, clock, take, give_back, alone: MemoryRateLimiter::default() }
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
                    Ok(Permit { full_at: Timestamp::from_ms(full_at), alone: false })
                }
                Ok((wait_ms, _)) => Err(Error::rate_limited(wait_ms)),
                Err(Down) => {
                    metrics::limiter_alone(rate.name);
                    self.alone.take(rate.alone(), key, now).await
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
            if permit.alone {
                return self.alone.give_back(rate.alone(), key, permit, now).await;
            }
            let mut call = self.give_back.prepare_invoke();
            call.key(self.name(rate, key));
            call.arg(every_ms(rate)).arg(permit.full_at.as_ms()).arg(self.clock.advanced_ms());
            // Without Redis the permit stays counted there: fewer guesses, never more.
            let _: Result<u64, Down> = self.redis.script("rate_back", &call).await;
        })
    }
}

fn every_ms(rate: Rate) -> u64 {
    u64::try_from(rate.every.as_millis()).unwrap_or(u64::MAX)
}
