//! Rate limits: exact over all replicas, also for concurrent requests, and bounded without Redis.

use std::time::Duration;

use starling::cluster::RateLimiter;
use starling::cluster::memory::MemoryRateLimiter;
use starling::model::Clock;
use starling::model::limits::{Rate, WithoutRedis};
use tokio::task::JoinSet;

use super::{Replica, prefix};
use crate::support::{OwnRedis, redis_url};

const RATE: Rate = Rate {
    name: "test",
    burst: 40,
    every: Duration::from_mins(1),
    without_redis: WithoutRedis::Full,
};
const STRICT: Rate = Rate { name: "strict", without_redis: WithoutRedis::Strict, ..RATE };

/// Takes this number of permits under one key. Returns how many are granted.
async fn granted(limiter: &dyn RateLimiter, rate: Rate, takes: usize, clock: &Clock) -> usize {
    let mut granted = 0;
    for _ in 0..takes {
        granted += usize::from(limiter.take(rate, "ada", clock.now()).await.is_ok());
    }
    granted
}

async fn a_burst_is_granted_then_one_each_pause(limiter: &dyn RateLimiter, clock: &Clock) {
    assert_eq!(granted(limiter, RATE, 50, clock).await, 40);
    let refused = limiter.take(RATE, "ada", clock.now()).await.unwrap_err();
    let wait_ms = refused.retry_after_ms.unwrap();
    assert!((50_000..=60_000).contains(&wait_ms), "{wait_ms}");
    assert!(limiter.take(RATE, "bob", clock.now()).await.is_ok(), "each key counts for itself");
    clock.advance(Duration::from_mins(3));
    assert_eq!(granted(limiter, RATE, 10, clock).await, 3);
}

#[tokio::test]
async fn a_burst_is_granted_then_one_each_pause_in_memory() {
    a_burst_is_granted_then_one_each_pause(&MemoryRateLimiter::default(), &Clock::system()).await;
}

#[tokio::test]
async fn a_burst_is_granted_then_one_each_pause_over_redis() {
    let replica = Replica::join(&redis_url(), &prefix());
    a_burst_is_granted_then_one_each_pause(&*replica.cluster.limiter, &replica.clock).await;
}

async fn returned_permits_are_granted_again_and_earned_permits_only_once(
    limiter: &dyn RateLimiter,
    clock: &Clock,
) {
    let take = async || limiter.take(RATE, "ada", clock.now()).await;
    let mut permits = Vec::new();
    for _ in 0..40 {
        permits.push(take().await.unwrap());
    }

    assert!(take().await.is_err());
    for permit in permits.drain(20..) {
        limiter.give_back(RATE, "ada", permit, clock.now()).await;
    }
    assert_eq!(granted(limiter, RATE, 30, clock).await, 20);
    assert_eq!(granted(limiter, RATE, 1, clock).await, 0);

    clock.advance(RATE.every * 41);
    for permit in permits {
        limiter.give_back(RATE, "ada", permit, clock.now()).await;
    }
    assert_eq!(granted(limiter, RATE, 50, clock).await, 40, "only the burst");
}

#[tokio::test]
async fn returned_permits_are_granted_again_in_memory() {
    let (limiter, clock) = (MemoryRateLimiter::default(), Clock::system());
    returned_permits_are_granted_again_and_earned_permits_only_once(&limiter, &clock).await;
}

#[tokio::test]
async fn returned_permits_are_granted_again_over_redis() {
    let replica = Replica::join(&redis_url(), &prefix());
    let limiter = &*replica.cluster.limiter;
    returned_permits_are_granted_again_and_earned_permits_only_once(limiter, &replica.clock).await;
}

#[tokio::test]
async fn failures_on_two_replicas_at_once_are_counted_exactly_and_successes_are_not() {
    let prefix = prefix();
    let replicas = [Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix)];
    let mut attempts = JoinSet::new();
    for index in 0..200 {
        let (limiter, clock) =
            (replicas[index % 2].cluster.limiter.clone(), replicas[0].clock.clone());
        attempts.spawn(async move {
            let permit = limiter.take(RATE, "ada", clock.now()).await.ok()?;
            let failed = index % 4 < 2;
            if !failed {
                limiter.give_back(RATE, "ada", permit, clock.now()).await;
            }
            Some(failed)
        });
    }

    let failed =
        attempts.join_all().await.into_iter().filter(|attempt| *attempt == Some(true)).count();
    let left = granted(&*replicas[0].cluster.limiter, RATE, 50, &replicas[0].clock).await;
    assert_eq!(failed + left, 40);
}

#[tokio::test]
async fn two_replicas_grant_one_burst_between_them() {
    let prefix = prefix();
    let replicas = [Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix)];
    let mut takes = JoinSet::new();
    for index in 0..100 {
        let limiter = replicas[index % 2].cluster.limiter.clone();
        let now = replicas[0].clock.now();
        takes.spawn(async move { limiter.take(RATE, "ada", now).await.is_ok() });
    }
    assert_eq!(takes.join_all().await.into_iter().filter(|granted| *granted).count(), 40);
}

#[tokio::test]
async fn redis_keys_contain_no_login_or_address() {
    let (redis, now) = (OwnRedis::start().await, Clock::system().now());
    let replica = Replica::join(&redis.url(), &prefix());
    for key in ["ada.lovelace", "203.0.113.7"] {
        replica.cluster.limiter.take(RATE, key, now).await.unwrap();
    }
    let keys: Vec<String> = redis.command(&["KEYS", "*:rate:*"]).await;
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| !key.contains("lovelace") && !key.contains("203.0")), "{keys:?}");
}

#[tokio::test]
async fn a_wrong_clock_of_one_replica_changes_nothing() {
    let prefix = prefix();
    let (right, wrong) =
        (Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix));
    let hour = wrong.clock.now().plus(Duration::from_hours(1));
    assert_eq!(granted(&*right.cluster.limiter, RATE, 40, &right.clock).await, 40);
    assert!(wrong.cluster.limiter.take(RATE, "ada", hour).await.is_err());
}

#[tokio::test]
async fn without_redis_sends_continue_and_guesses_are_limited_more() {
    let mut redis = OwnRedis::start().await;
    let replica = Replica::join(&redis.url(), &prefix());
    assert!(replica.cluster.limiter.take(RATE, "ada", replica.clock.now()).await.is_ok());
    redis.kill();

    let start = std::time::Instant::now();
    assert_eq!(granted(&*replica.cluster.limiter, RATE, 50, &replica.clock).await, 40);
    assert_eq!(granted(&*replica.cluster.limiter, STRICT, 50, &replica.clock).await, 5);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "no request waits for an unreachable Redis: {:?}",
        start.elapsed()
    );
    redis.restart().await;
}
