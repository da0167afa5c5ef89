//! The contracts over a Redis Cluster, and over a master that a Sentinel replaces.

use std::time::Duration;

use starling::cluster::{Arrival, Bus, RateLimiter, SessionCache};
use starling::model::limits::{Rate, WithoutRedis};
use starling::model::token::TokenHash;
use starling::model::{ChatId, Clock, Event, Topic, UserId};

use super::{Replica, prefix, presence};
use crate::support::{OwnRedis, eventually};

const RATE: Rate = Rate {
    name: "test",
    burst: 20,
    every: Duration::from_mins(1),
    without_redis: WithoutRedis::Full,
};

/// Whether the events of one replica on this many topics reach another within two seconds.
async fn is_received(speaker: &Replica, listener: &mut Replica, topics: usize) -> bool {
    let chats: Vec<ChatId> =
        (0..topics).map(|_| ChatId::new(Clock::system().now(), &mut rand::rng())).collect();
    for chat_id in &chats {
        listener.cluster.bus.follow(Topic::Chat(*chat_id));
    }

    tokio::time::sleep(Duration::from_millis(500)).await;
    for chat_id in &chats {
        speaker
            .cluster
            .bus
            .publish(Event::Typing { chat_id: *chat_id, user_id: UserId::default() });
    }

    let mut received = 0;
    let listening = async {
        while received < topics {
            if let Some(Arrival::Event(Event::Typing { chat_id, .. })) =
                listener.cluster.inbox.next().await
            {
                received += usize::from(chats.contains(&chat_id));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(2), listening).await.is_ok()
}

async fn all_else_is_shared(one: &Replica, two: &Replica) {
    presence::acquainted(&[one, two]).await;
    let (a, b) = (&*one.cluster.presence, &*two.cluster.presence);
    presence::a_user_is_online_until_withdrawn_everywhere(a, b).await;
    presence::the_number_of_connection_slots_is_exact(a, b).await;

    let mut granted = 0;
    for index in 0..40 {
        let limiter = &[one, two][index % 2].cluster.limiter;
        granted += usize::from(limiter.take(RATE, "ada", one.clock.now()).await.is_ok());
    }

    assert_eq!(granted, 20);
    let token = TokenHash(rand::random());
    let ticket = one.cluster.session_cache.get(token).await.unwrap_err();
    let caller = super::session_cache::caller();
    one.cluster.session_cache.put(token, caller, ticket).await;
    assert_eq!(two.cluster.session_cache.get(token).await.unwrap(), caller);
    two.cluster.session_cache.forget(&[token]).await;
    assert!(one.cluster.session_cache.get(token).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_redis_cluster() {
    let nodes = OwnRedis::cluster().await;
    let url =
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", nodes[0].port(), nodes[1].port());
    let prefix = prefix();
    let (speaker, mut listener) = (Replica::join(&url, &prefix), Replica::join(&url, &prefix));
    eventually("both are connected", async || {
        speaker.cluster.health.is_connected() && listener.cluster.health.is_connected()
    })
    .await;

    assert!(is_received(&speaker, &mut listener, 60).await, "topics live on all nodes");
    all_else_is_shared(&speaker, &listener).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_a_failover_of_sentinels() {
    let mut master = OwnRedis::start().await;
    let replica = OwnRedis::replica_of(&master).await;
    let sentinel = OwnRedis::sentinel(&master).await;
    eventually("the sentinel lists both", async || {
        let replicas: Vec<Vec<String>> = sentinel.command(&["SENTINEL", "REPLICAS", "main"]).await;
        let synced: String = replica.command(&["INFO", "replication"]).await;
        replicas.len() == 1 && synced.contains("master_link_status:up")
    })
    .await;

    let (url, prefix) = (format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port()), prefix());
    let (speaker, mut listener) = (Replica::join(&url, &prefix), Replica::join(&url, &prefix));
    eventually("the listener is connected", async || listener.cluster.health.is_connected()).await;
    assert!(is_received(&speaker, &mut listener, 3).await);
    master.kill();

    let failed_at = std::time::Instant::now();
    while !is_received(&speaker, &mut listener, 3).await {
        assert!(
            failed_at.elapsed() < Duration::from_secs(30),
            "a replica does not follow the failover"
        );
    }
    all_else_is_shared(&speaker, &listener).await;
}
