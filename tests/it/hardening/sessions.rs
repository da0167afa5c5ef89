//! Sessions: copies of cached entries and of events, put back or replayed later.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use starling::cluster::redis::Channel;
use starling::cluster::{Arrival, Bus, BusInbox};
use starling::model::{ChatId, Clock, Event, SessionId, Topic, UserId};

use crate::cluster::{Replica, prefix, publish_raw};
use crate::support::{TestServer, eventually, redis_command, redis_url};

const CURRENT: &str = "/sessions/current";

/// Copies an entry without its expiry.
async fn copy(from: &str, to: &str) {
    let copied: i64 = redis_command(&redis_url(), &["COPY", from, to, "REPLACE"]).await.unwrap();
    assert_eq!(copied, 1, "{from} was there");
    let _: i64 = redis_command(&redis_url(), &["PERSIST", to]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_cached_session_put_back_into_redis_grants_no_access() {
    let (server, prefix) = TestServer::fleet().await;
    let ada = server.user().await;
    ada.get(CURRENT).await.expect(200);

    let entries: Vec<String> =
        redis_command(&redis_url(), &["KEYS", &format!("{prefix}:token:*")]).await.unwrap();
    let [entry] = entries.as_slice() else { panic!("one session was cached: {entries:?}") };

    let kept = format!("{entry}:kept");
    copy(entry, &kept).await;

    ada.delete(CURRENT).await.expect(204);
    ada.get(CURRENT).await.refused(401, "not_authenticated");
    server.advance(Duration::from_secs(9));
    copy(&kept, entry).await;
    for _ in 0..4 {
        // Unlike the session itself, the list of chats is answered without a query for the session.
        ada.get("/chats").await.refused(401, "not_authenticated");
    }
    let _: i64 = redis_command(&redis_url(), &["DEL", &kept, entry]).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_session_copied_to_another_token_is_rejected() {
    let (server, prefix) = TestServer::fleet().await;
    let (ada, bob) = (server.user().await, server.user().await);
    let entries = async || -> Vec<String> {
        redis_command(&redis_url(), &["KEYS", &format!("{prefix}:token:*")]).await.unwrap()
    };

    ada.get(CURRENT).await.expect(200);
    let of_ada = entries().await.remove(0);
    bob.get(CURRENT).await.expect(200);
    let of_bob = entries().await.into_iter().find(|entry| *entry != of_ada).unwrap();

    copy(&of_bob, &of_ada).await;
    for _ in 0..4 {
        assert_eq!(ada.get(CURRENT).await.expect(200)["user"]["id"], json!(ada.id));
    }
    let _: i64 = redis_command(&redis_url(), &["DEL", &of_ada, &of_bob]).await.unwrap();
    server.stop().await;
}

/// A copy of the next message on a channel, which `publish` sends.
async fn copy_of_message(channel: &str, publish: impl Fn()) -> Vec<u8> {
    let mut listening = redis::Client::open(redis_url()).unwrap().get_async_pubsub().await.unwrap();
    listening.subscribe(channel).await.unwrap();
    publish();
    let message =
        tokio::time::timeout(Duration::from_secs(30), listening.on_message().next()).await;
    message.expect("a message comes in time").unwrap().get_payload().unwrap()
}

async fn next(inbox: &mut BusInbox) -> Arrival {
    tokio::time::timeout(Duration::from_secs(30), inbox.next())
        .await
        .expect("a message comes in time")
        .unwrap()
}

/// Subscribes the replica to a topic, and waits until the subscription is in force.
async fn follow(replica: &mut Replica, topic: Topic) {
    eventually("the bus is connected", async || replica.cluster.health.is_connected()).await;
    replica.cluster.bus.follow(topic);
    loop {
        let arrival = next(&mut replica.cluster.inbox).await;
        if matches!(&arrival, Arrival::Resync(topics) if topics.contains(&topic)) {
            return;
        }
    }
}

#[tokio::test]
async fn a_copy_of_an_event_replayed_after_a_minute_causes_a_resync_and_is_not_delivered() {
    let prefix = prefix();
    let publisher = Replica::join(&redis_url(), &prefix);
    let mut subscriber = Replica::join(&redis_url(), &prefix);
    let chat_id = ChatId::new(Clock::system().now(), &mut rand::rng());
    let typing = Event::Typing { chat_id, user_id: UserId::default() };

    follow(&mut subscriber, Topic::Chat(chat_id)).await;
    let channel = Channel::of(Topic::Chat(chat_id)).name(&prefix);
    let body = copy_of_message(&channel, || publisher.cluster.bus.publish(typing.clone())).await;
    assert!(matches!(
        next(&mut subscriber.cluster.inbox).await,
        Arrival::Event(Event::Typing { .. })
    ));

    publish_raw(&channel, &body).await;
    let arrival = next(&mut subscriber.cluster.inbox).await;
    assert!(
        matches!(arrival, Arrival::Event(Event::Typing { .. })),
        "a fresh copy is delivered: {arrival:?}"
    );

    subscriber.clock.advance(Duration::from_secs(61));
    for _ in 0..100 {
        publish_raw(&channel, &body).await;
    }
    let arrival = next(&mut subscriber.cluster.inbox).await;
    assert!(
        matches!(&arrival, Arrival::Resync(topics) if *topics == [Topic::Chat(chat_id)]),
        "{arrival:?}"
    );

    publisher.clock.advance(Duration::from_secs(61));
    publisher.cluster.bus.publish(typing);
    let mut resyncs = 0;
    while let Arrival::Resync(_) = next(&mut subscriber.cluster.inbox).await {
        resyncs += 1;
    }
    assert!(resyncs <= 3, "a hundred copies cost a resync a second: {resyncs}");
}

#[tokio::test]
async fn a_replayed_end_of_a_session_makes_the_replica_resync_everything() {
    let prefix = prefix();
    let publisher = Replica::join(&redis_url(), &prefix);
    let mut subscriber = Replica::join(&redis_url(), &prefix);
    eventually("the bus is connected", async || subscriber.cluster.health.is_connected()).await;

    let channel = format!("{prefix}:everyone:{{}}");
    let ended = Event::SessionsEnded(vec![SessionId::new(Clock::system().now(), &mut rand::rng())]);
    let body = copy_of_message(&channel, || publisher.cluster.bus.publish(ended.clone())).await;
    while !matches!(
        next(&mut subscriber.cluster.inbox).await,
        Arrival::Event(Event::SessionsEnded(_))
    ) {}

    subscriber.clock.advance(Duration::from_secs(61));
    publish_raw(&channel, &body).await;
    let arrival = next(&mut subscriber.cluster.inbox).await;
    assert!(matches!(arrival, Arrival::ResyncAll), "{arrival:?}");
}
