//! Rate limits over all replicas: one atomic script a take, by the clock of Redis.

use std::sync::Arc;

use bb8_redis::redis::Script;

use super::envelope::ClusterKey;
use super::link::{Down, Redis};
use crate::cluster::memory::MemoryRateLimiter;
use crate::cluster::{BoxFuture, RateLimiter};
use crate::metrics;
use crate::model::limits::Rate;
use crate::model::{Clock, Error, Result, Timestamp};

/// The bucket of [`crate::model::limits::Bucket`], kept as the time at which it will be full again. Answers 0, or in how
/// many milliseconds one will be free.
const TAKE: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
    local every, tolerance = tonumber(ARGV[1]), ARGV[1] * (ARGV[2] - 1)
    local from = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
    local over = from - now - tolerance
    if over > 0 then return over end
    redis.call('SET', KEYS[1], string.format('%d', from + every), 'PX', from + every - now + ARGV[3])
    return 0";

/// Rate limits in Redis. Without Redis each replica counts for itself, what guards against guessing more strictly:
/// [`Rate::alone`].
pub struct RedisRateLimiter {
    redis: Arc<Redis>,
    key: ClusterKey,
    clock: Clock,
    script: Script,
    alone: MemoryRateLimiter,
}

impl RedisRateLimiter {
    /// Rate limits in this Redis.
    pub fn new(redis: Arc<Redis>, key: ClusterKey, clock: Clock) -> Self {
        Self { redis, key, clock, script: Script::new(TAKE), alone: MemoryRateLimiter::default() }
    }
}

impl RateLimiter for RedisRateLimiter {
    fn take<'a>(&'a self, rate: Rate, key: &'a str, now: Timestamp) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let every = u64::try_from(rate.every.as_millis()).unwrap_or(u64::MAX);
            let mut call = self.script.prepare_invoke();
            call.key(self.redis.key("rate", &format!("{}:{}", rate.name, self.key.veil(rate.name, key))));
            call.arg(every).arg(rate.burst).arg(self.clock.advanced_ms());
            match self.redis.script::<u64>("rate", &call).await {
                Ok(0) => Ok(()),
                Ok(wait_ms) => Err(Error::rate_limited(wait_ms)),
                Err(Down) => {
                    metrics::limiter_alone(rate.name);
                    self.alone.take(rate.alone(), key, now).await
                }
            }
        })
    }
}
