//! The cache of resolved tokens: a removed token stays removed, also when an older answer is put
//! late.

use std::time::Duration;

use starling::cluster::SessionCache;
use starling::cluster::memory::MemorySessionCache;
use starling::model::session::Caller;
use starling::model::token::TokenHash;
use starling::model::{Clock, SessionId, UserId};

use super::{Replica, prefix};
use crate::support::{OwnRedis, redis_url};

pub fn caller() -> Caller {
    let now = Clock::system().now();
    Caller {
        user_id: UserId::new(now, &mut rand::rng()),
        session_id: SessionId::new(now, &mut rand::rng()),
        expires_at: now.plus(Duration::from_hours(1)),
        last_seen_at: now,
        logins: 0,
    }
}

fn token() -> TokenHash {
    TokenHash(rand::random())
}

async fn an_entry_is_found_until_it_is_removed(cache: &dyn SessionCache) {
    let (token, caller) = (token(), caller());
    let ticket = cache.get(token).await.unwrap_err();
    cache.put(token, caller, ticket).await;
    assert_eq!(cache.get(token).await.unwrap(), caller);
    cache.forget(&[token]).await;
    assert!(cache.get(token).await.is_err());
}

async fn an_answer_older_than_the_removal_is_not_cached(cache: &dyn SessionCache) {
    let (token, caller) = (token(), caller());
    let ticket = cache.get(token).await.unwrap_err();
    // The session ends before the answer is put.
    cache.forget(&[token]).await;
    cache.put(token, caller, ticket).await;
    assert!(cache.get(token).await.is_err());
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let cache = MemorySessionCache::default();
    an_entry_is_found_until_it_is_removed(&cache).await;
    an_answer_older_than_the_removal_is_not_cached(&cache).await;
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    let replica = Replica::join(&redis_url(), &prefix());
    an_entry_is_found_until_it_is_removed(&*replica.cluster.session_cache).await;
    an_answer_older_than_the_removal_is_not_cached(&*replica.cluster.session_cache).await;
}

#[tokio::test]
async fn all_replicas_share_entries_and_removals() {
    let prefix = prefix();
    let (one, two) = (Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix));
    let (one, two) = (&one.cluster.session_cache, &two.cluster.session_cache);
    let (token, caller) = (token(), caller());
    let ticket = one.get(token).await.unwrap_err();
    one.put(token, caller, ticket).await;
    assert_eq!(two.get(token).await.unwrap(), caller);
    one.forget(&[token]).await;
    assert!(one.get(token).await.is_err());
    assert!(two.get(token).await.is_err());
}

#[tokio::test]
async fn an_answer_read_before_another_replicas_removal_is_not_cached() {
    let prefix = prefix();
    let (one, two) = (Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix));
    let (token, caller) = (token(), caller());
    let ticket = one.cluster.session_cache.get(token).await.unwrap_err();
    two.cluster.session_cache.forget(&[token]).await;
    one.cluster.session_cache.put(token, caller, ticket).await;
    assert!(one.cluster.session_cache.get(token).await.is_err());
    assert!(two.cluster.session_cache.get(token).await.is_err());
}

#[tokio::test]
async fn an_entry_with_a_foreign_seal_is_a_miss() {
    let prefix = prefix();
    let replica = Replica::join(&redis_url(), &prefix);
    let forger = Replica::with_key(&redis_url(), &prefix, [8; 32]);
    let (token, caller) = (token(), caller());
    let ticket = forger.cluster.session_cache.get(token).await.unwrap_err();
    forger.cluster.session_cache.put(token, caller, ticket).await;
    assert!(forger.cluster.session_cache.get(token).await.is_ok());
    assert!(replica.cluster.session_cache.get(token).await.is_err());
}

#[tokio::test]
async fn without_redis_lookups_miss_at_once_and_removals_are_kept() {
    let mut redis = OwnRedis::start().await;
    let replica = Replica::join(&redis.url(), &prefix());
    let cache = &replica.cluster.session_cache;
    let (token, caller) = (token(), caller());
    let ticket = cache.get(token).await.unwrap_err();
    cache.put(token, caller, ticket).await;

    let _: String = redis.command(&["CLIENT", "PAUSE", "1500"]).await;
    let start = std::time::Instant::now();
    cache.forget(&[token]).await;
    for _ in 0..100 {
        assert!(cache.get(token).await.is_err());
    }

    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(cache.get(token).await.is_err());
    redis.kill();
}
