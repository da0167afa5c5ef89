//! Presence: which users are online, and how many connections each has, on every implementation.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use starling::cluster::memory::MemoryPresence;
use starling::cluster::{Entered, Presence, TooMany};
use starling::model::{Clock, UserId};

use super::{Replica, prefix};
use crate::support::{Mode, OwnRedis, Proxy, eventually, redis_url};

/// How long the users of a killed replica may stay online.
const GHOSTS_MAX: Duration = Duration::from_secs(20);

fn user() -> UserId {
    UserId::new(Clock::system().now(), &mut rand::rng())
}

async fn is_online(presence: &dyn Presence, user: UserId) -> bool {
    presence.online(&[user]).await.unwrap() == [true]
}

/// Two replicas that have seen each other's lease.
async fn pair(url: &str) -> (Replica, Replica) {
    let prefix = prefix();
    let (a, b) = (Replica::join(url, &prefix), Replica::join(url, &prefix));
    acquainted(&[&a, &b]).await;
    (a, b)
}

pub async fn acquainted(replicas: &[&Replica]) {
    eventually("each replica lists every lease", async || {
        replicas.iter().all(|it| it.cluster.leases.listed().len() == replicas.len())
    })
    .await;
}

/// `a` and `b` may be one replica.
pub async fn a_user_is_online_until_withdrawn_everywhere(a: &dyn Presence, b: &dyn Presence) {
    let (ada, bob) = (user(), user());
    assert!(a.online(&[]).await.unwrap().is_empty());
    assert_eq!(b.online(&[ada, bob]).await.unwrap(), [false, false]);
    assert_eq!(a.enter(ada, 2).await, Ok(Entered::First));
    assert_eq!(b.online(&[bob, ada]).await.unwrap(), [false, true]);
    assert_eq!(a.enter(ada, 2).await, Ok(Entered::Again));
    assert_eq!(b.enter(ada, 2).await, Err(TooMany));
    assert_eq!((a.leave(ada), a.leave(ada)), (false, true));
    assert!(is_online(a, ada).await && is_online(b, ada).await, "online until withdrawn");
    assert_eq!(a.enter(ada, 2).await, Ok(Entered::Again), "still online");
    assert_eq!(a.withdraw(&[ada, bob]).await, [], "a connected user is not withdrawn");
    assert!(a.leave(ada));
    assert_eq!(a.withdraw(&[ada, bob]).await, [ada]);
    assert_eq!(a.withdraw(&[ada]).await, []);
    assert!(!is_online(a, ada).await && !is_online(b, ada).await);
    assert_eq!(b.enter(ada, 0).await, Err(TooMany));
    assert!(!is_online(a, ada).await && !is_online(b, ada).await);
}

#[tokio::test]
async fn a_user_is_online_until_withdrawn_in_memory() {
    let presence = MemoryPresence::default();
    a_user_is_online_until_withdrawn_everywhere(&presence, &presence).await;
}

#[tokio::test]
async fn a_user_is_online_until_withdrawn_over_redis() {
    let (a, b) = pair(&redis_url()).await;
    let (a, b) = (&*a.cluster.presence, &*b.cluster.presence);
    a_user_is_online_until_withdrawn_everywhere(a, b).await;
    a_user_is_online_until_withdrawn_everywhere(b, b).await;

    let ada = user();
    assert_eq!(
        (a.enter(ada, 9).await, b.enter(ada, 9).await),
        (Ok(Entered::First), Ok(Entered::First))
    );
    a.leave(ada);
    assert_eq!(a.withdraw(&[ada]).await, [ada]);
    assert!(is_online(a, ada).await, "online on the other replica");
}

/// Of many connections at once over two replicas, never more than the maximum get a slot. Two
/// replicas that count at the same moment may both refuse the last slots; a later attempt gets
/// them.
pub async fn the_number_of_connection_slots_is_exact(a: &dyn Presence, b: &dyn Presence) {
    const MAX: usize = 20;

    let ada = user();
    let all =
        join_all((0..64).map(|number| if number % 2 == 0 { a } else { b }.enter(ada, MAX))).await;
    let on_a = all.iter().step_by(2).filter(|it| it.is_ok()).count();
    let granted = all.iter().filter(|it| it.is_ok()).count();
    assert!(granted <= MAX, "{granted} slots");
    for _ in granted..MAX {
        eventually("the slot is free", async || b.enter(ada, MAX).await.is_ok()).await;
    }
    assert_eq!(a.enter(ada, MAX).await, Err(TooMany));
    assert_eq!(b.enter(ada, MAX).await, Err(TooMany));

    // A slot that one replica gives back is soon free on the other.
    for _ in 0..on_a {
        a.leave(ada);
        eventually("a slot is free", async || b.enter(ada, MAX).await.is_ok()).await;
        assert_eq!(b.enter(ada, MAX).await, Err(TooMany));
        assert_eq!(a.enter(ada, MAX).await, Err(TooMany));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_connection_slots_is_exact_in_memory() {
    let presence = MemoryPresence::default();
    the_number_of_connection_slots_is_exact(&presence, &presence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_connection_slots_is_exact_over_redis() {
    let (a, b) = pair(&redis_url()).await;
    for _ in 0..5 {
        the_number_of_connection_slots_is_exact(&*a.cluster.presence, &*b.cluster.presence).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_users_are_online_within_seconds() {
    let (a, b) = pair(&redis_url()).await;
    let users: Vec<UserId> = (0..5_000).map(|_| user()).collect();
    let start = Instant::now();
    let entered = join_all(users.iter().map(|user| a.cluster.presence.enter(*user, 20))).await;
    assert!(entered.iter().all(|it| *it == Ok(Entered::First)));

    let online = b.cluster.presence.online(&users).await.unwrap();
    assert!(online.iter().all(|it| *it), "{} of them", online.iter().filter(|it| **it).count());
    for user in &users {
        assert!(a.cluster.presence.leave(*user));
    }

    assert_eq!(a.cluster.presence.withdraw(&users).await.len(), users.len());
    let online = b.cluster.presence.online(&users).await.unwrap();
    assert!(online.iter().all(|it| !*it));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn without_redis_each_replica_counts_its_own_connections_and_online_is_unavailable() {
    let replica = Replica::join("redis://127.0.0.1:1", &prefix());
    let (presence, ada) = (&replica.cluster.presence, user());
    let start = Instant::now();
    assert_eq!(presence.enter(ada, 2).await, Ok(Entered::First));
    assert_eq!(presence.enter(ada, 2).await, Ok(Entered::Again));
    assert_eq!(presence.enter(ada, 2).await, Err(TooMany));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

    let error = presence.online(&[ada]).await.unwrap_err();
    assert_eq!(error.code, starling::model::Code::Unavailable);
    assert_eq!((presence.leave(ada), presence.leave(ada)), (false, true));
    assert_eq!(presence.withdraw(&[ada]).await, [ada]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_users_of_a_killed_replica_go_offline() {
    let prefix = prefix();
    let living = Replica::join(&redis_url(), &prefix);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let doomed = {
        let _inside = runtime.enter();
        Replica::join(&redis_url(), &prefix)
    };

    acquainted(&[&living, &doomed]).await;
    let (ada, bob, both) = (user(), user(), user());
    for user in [ada, both] {
        doomed.cluster.presence.enter(user, 1_000).await.unwrap();
    }

    for user in [bob, both] {
        living.cluster.presence.enter(user, 1_000).await.unwrap();
    }

    let online = async || living.cluster.presence.online(&[ada, bob, both]).await.unwrap();
    assert_eq!(online().await, [true, true, true]);

    // All tasks end at once, as in a kill.
    runtime.shutdown_background();

    let killed = Instant::now();
    loop {
        let now = online().await;
        assert_eq!(now[1..], [true, true], "users of the other replica stay online");
        if !now[0] {
            break;
        }
        assert!(killed.elapsed() < GHOSTS_MAX, "the user stays online");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    assert!(killed.elapsed() > Duration::from_secs(3), "a short stall ends no lease");

    // The killed replica's slots are free again.
    assert!(living.cluster.presence.enter(ada, 1).await.is_ok());
    assert!(living.cluster.presence.enter(both, 2).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_stopping_replica_have_time_to_reconnect() {
    let prefix = prefix();
    let (living, stopping) =
        (Replica::join(&redis_url(), &prefix), Replica::join(&redis_url(), &prefix));
    acquainted(&[&living, &stopping]).await;

    let (moving, leaving) = (user(), user());
    for user in [moving, leaving] {
        stopping.cluster.presence.enter(user, 1).await.unwrap();
        stopping.cluster.presence.leave(user);
    }

    drop(stopping);
    tokio::time::sleep(Duration::from_secs(2)).await;

    let online = async || living.cluster.presence.online(&[moving, leaving]).await.unwrap();
    assert_eq!(online().await, [true, true]);
    living.cluster.presence.enter(moving, 1).await.unwrap();

    let start = Instant::now();
    while online().await != [true, false] {
        assert!(start.elapsed() < GHOSTS_MAX, "the user stays online");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_redis_wipe_users_stay_online_and_connection_slots_are_counted_again() {
    let redis = OwnRedis::start().await;
    let (a, b) = pair(&redis.url()).await;
    let (ada, bob, eve) = (user(), user(), user());
    a.cluster.presence.enter(ada, 2).await.unwrap();
    b.cluster.presence.enter(bob, 2).await.unwrap();

    for _ in 0..3 {
        redis.command::<()>(&["FLUSHALL"]).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            for replica in [&a, &b] {
                if let Ok(online) = replica.cluster.presence.online(&[ada, bob, eve]).await {
                    assert_eq!(online, [true, true, false], "{:?} after", start.elapsed());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        assert_eq!(b.cluster.presence.online(&[ada, eve]).await.unwrap(), [true, false]);
    }

    assert!(b.cluster.presence.enter(ada, 2).await.is_ok());
    assert_eq!(b.cluster.presence.enter(ada, 2).await, Err(TooMany));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_redis_wipe_users_of_an_unreachable_replica_go_offline_after_a_grace() {
    let redis = OwnRedis::start().await;
    let (way, prefix) = (Proxy::to(&Proxy::target_of(&redis.url())).await, prefix());
    let (a, b) =
        (Replica::join(&way.in_url(&redis.url()), &prefix), Replica::join(&redis.url(), &prefix));
    acquainted(&[&a, &b]).await;

    let ada = user();
    a.cluster.presence.enter(ada, 2).await.unwrap();
    assert!(is_online(&*b.cluster.presence, ada).await);

    // Longer than a replica takes to find the new epoch, shorter than a lease is listed.
    way.set(Mode::BlackHole);
    redis.command::<()>(&["FLUSHALL"]).await;

    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let online = b.cluster.presence.online(&[ada]).await;
        assert!(!online.is_ok_and(|online| online == [false]), "{:?} after", start.elapsed());
    }

    way.set(Mode::Pass);
    eventually("the user is online", async || {
        b.cluster.presence.online(&[ada]).await.is_ok_and(|it| it == [true])
    })
    .await;
    way.set(Mode::BlackHole);
    redis.command::<()>(&["FLUSHALL"]).await;

    let start = Instant::now();
    while !b.cluster.presence.online(&[ada]).await.is_ok_and(|online| online == [false]) {
        assert!(start.elapsed() < GHOSTS_MAX, "the user stays online");
    }
    assert!(start.elapsed() > Duration::from_secs(7), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_made_without_redis_are_shared_once_it_is_back() {
    let mut redis = OwnRedis::start().await;
    let (a, b) = pair(&redis.url()).await;
    let (stays, comes, goes) = (user(), user(), user());
    a.cluster.presence.enter(stays, 1).await.unwrap();
    a.cluster.presence.enter(goes, 1).await.unwrap();
    redis.kill();
    assert!(a.cluster.presence.enter(comes, 1).await.is_ok());
    a.cluster.presence.leave(goes);
    assert_eq!(a.cluster.presence.withdraw(&[goes]).await, [goes]);
    assert!(b.cluster.presence.online(&[stays]).await.is_err());

    redis.restart().await;
    eventually("the presence is complete", async || {
        let online = b.cluster.presence.online(&[stays, comes, goes]).await;
        // An online user is not shown offline, not even for a moment.
        online.is_ok_and(|online| {
            assert_eq!(online, [true, true, false]);
            true
        })
    })
    .await;
    assert_eq!(b.cluster.presence.enter(stays, 1).await, Err(TooMany));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_right_after_a_wipe_of_redis_shows_no_online_user_offline() {
    let redis = OwnRedis::start().await;
    let (way, prefix) = (Proxy::to(&Proxy::target_of(&redis.url())).await, prefix());
    let (a, b) =
        (Replica::join(&way.in_url(&redis.url()), &prefix), Replica::join(&redis.url(), &prefix));
    acquainted(&[&a, &b]).await;

    let (ada, bob) = (user(), user());
    a.cluster.presence.enter(ada, 2).await.unwrap();
    b.cluster.presence.enter(bob, 2).await.unwrap();

    // Ada's replica can't renew its lease, so Bob's replica lists that lease again.
    way.set(Mode::BlackHole);
    redis.command::<()>(&["FLUSHALL"]).await;

    let c = Replica::join(&redis.url(), &prefix);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let online = c.cluster.presence.online(&[ada]).await;
        assert!(!online.is_ok_and(|online| online == [false]), "{:?} after", start.elapsed());
        let online = c.cluster.presence.online(&[bob]).await;
        assert!(!online.is_ok_and(|online| online == [false]), "{:?} after", start.elapsed());
    }

    way.set(Mode::Pass);
    eventually("all are online", async || {
        c.cluster.presence.online(&[ada, bob]).await.is_ok_and(|online| online == [true, true])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_shows_no_offline_user_online() {
    let redis = OwnRedis::start().await;
    let (way, prefix) = (Proxy::to(&Proxy::target_of(&redis.url())).await, prefix());
    let (a, b) =
        (Replica::join(&way.in_url(&redis.url()), &prefix), Replica::join(&redis.url(), &prefix));
    acquainted(&[&a, &b]).await;

    let (ada, bob) = (user(), user());
    a.cluster.presence.enter(bob, 2).await.unwrap();

    // Open connections hold back all bytes; new connections work.
    way.set(Mode::Strand);
    a.cluster.presence.enter(ada, 2).await.unwrap();
    a.cluster.presence.leave(ada);
    assert_eq!(a.cluster.presence.withdraw(&[ada]).await, [ada]);

    // Another user connects. Once that user is online, the replica has written its complete hash.
    let eve = user();
    a.cluster.presence.enter(eve, 2).await.unwrap();
    eventually("the replica is synced over other connections", async || {
        b.cluster.presence.online(&[eve]).await.is_ok_and(|online| online == [true])
    })
    .await;

    way.set(Mode::Pass);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let online = b.cluster.presence.online(&[ada, bob, eve]).await.unwrap();
        assert_eq!(online, [false, true, true], "{:?} after", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicas_hash_expires_and_is_written_again_if_lost() {
    let redis = OwnRedis::start().await;
    let (a, b) = pair(&redis.url()).await;
    let ada = user();
    a.cluster.presence.enter(ada, 2).await.unwrap();

    let hashes = async || redis.command::<Vec<String>>(&["KEYS", "*:online:*"]).await;
    eventually("both have a hash", async || hashes().await.len() == 2).await;
    for hash in hashes().await {
        let life_ms: i64 = redis.command(&["PTTL", &hash]).await;
        assert!((1..=30_000).contains(&life_ms), "{life_ms} ms");
    }

    for _ in 0..3 {
        for hash in hashes().await {
            redis.command::<()>(&["DEL", &hash]).await;
        }
        assert!(is_online(&*b.cluster.presence, ada).await, "found once the hash is back");
    }

    eventually("both are synced", async || {
        let mut synced = 0;
        for hash in hashes().await {
            synced += redis.command::<i64>(&["HEXISTS", &hash, "epoch"]).await;
        }
        synced == 2
    })
    .await;
    assert_eq!(b.cluster.presence.enter(ada, 1).await, Err(TooMany));
}
