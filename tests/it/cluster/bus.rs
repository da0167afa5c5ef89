//! The bus: which events arrive, in which order, and the resyncs that replace lost events.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use starling::cluster::memory::MemoryBus;
use starling::cluster::redis::Channel;
use starling::cluster::{Arrival, Bus, BusInbox};
use starling::model::{
    Change, ChatEvent, ChatId, Clock, Event, Message, MessageBody, MessageId, MessageKind, Rev,
    SessionId, Timestamp, Topic, UserId,
};
use tokio::task::JoinSet;

use super::{Replica, prefix, publish_raw};
use crate::support::{Mode, OwnRedis, Proxy, Way, eventually, redis_url};

/// How long an arrival may take.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

pub(super) fn chat() -> ChatId {
    ChatId::new(Clock::system().now(), &mut rand::rng())
}

fn typing(chat_id: ChatId) -> Event {
    Event::Typing { chat_id, user_id: UserId::default() }
}

pub(super) fn sent(chat_id: ChatId, rev: i64, text: &str) -> Event {
    let message = Message {
        chat_id,
        id: MessageId(rev),
        rev: Rev(rev),
        sender_id: UserId::default(),
        kind: MessageKind::Text,
        body: Some(MessageBody::Text(text.to_owned())),
        reply_to: None,
        client_id: Some("key".to_owned()),
        sent_at: Timestamp::from_ms(1_795_305_599_123),
        edited_at: None,
        removed_at: None,
    };
    Event::Chat(ChatEvent { chat_id, rev: Rev(rev), change: Change::MessageSent(message) })
}

pub(super) async fn next(inbox: &mut BusInbox) -> Arrival {
    tokio::time::timeout(ARRIVAL_MAX, inbox.next())
        .await
        .expect("something arrives")
        .expect("the bus runs")
}

/// The next event, after any number of resyncs.
pub(super) async fn next_event(inbox: &mut BusInbox) -> Event {
    loop {
        if let Arrival::Event(event) = next(inbox).await {
            return event;
        }
    }
}

/// Waits until a resync of a topic arrives.
async fn resynced(inbox: &mut BusInbox, topic: Topic) {
    loop {
        if let Arrival::Resync(topics) = next(inbox).await
            && topics.contains(&topic)
        {
            return;
        }
    }
}

/// Follows a topic and waits until the subscription is in force.
pub(super) async fn follow(replica: &mut Replica, topic: Topic) {
    connected(replica).await;
    replica.cluster.bus.follow(topic);
    resynced(&mut replica.cluster.inbox, topic).await;
}

async fn connected(replica: &Replica) {
    eventually("the bus is connected", async || replica.cluster.health.is_connected()).await;
}

fn revs(event: &Event) -> Rev {
    match event {
        Event::Chat(event) => event.rev,
        other => panic!("unexpected {other:?}"),
    }
}

/// On every bus, the events of a publisher reach its own hub in order, followed or not.
async fn own_events_arrive_in_order(bus: &dyn Bus, inbox: &mut BusInbox) {
    let chat_id = chat();
    for rev in 1..=10_000 {
        bus.publish(sent(chat_id, rev, "hello"));
    }
    for rev in 1..=10_000 {
        assert_eq!(revs(&next_event(inbox).await), Rev(rev));
    }
}

#[tokio::test]
async fn own_events_arrive_in_order_in_memory() {
    let (bus, mut inbox) = MemoryBus::new();
    own_events_arrive_in_order(&bus, &mut inbox).await;
}

#[tokio::test]
async fn own_events_arrive_in_order_over_redis() {
    let mut replica = Replica::join(&redis_url(), &prefix());
    own_events_arrive_in_order(&*replica.cluster.bus, &mut replica.cluster.inbox).await;
}

#[tokio::test]
async fn own_events_arrive_without_redis() {
    let mut replica = Replica::join("redis://127.0.0.1:1", &prefix());
    own_events_arrive_in_order(&*replica.cluster.bus, &mut replica.cluster.inbox).await;
}

#[tokio::test]
async fn another_replica_receives_the_topics_it_follows_in_order_and_unchanged() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    let (followed, other) = (chat(), chat());
    follow(&mut listener, Topic::Chat(followed)).await;
    for rev in 1..=2_000 {
        speaker.cluster.bus.publish(sent(other, rev, "not for you"));
        speaker.cluster.bus.publish(sent(followed, rev, "żółw 🐢"));
    }

    for rev in 1..=2_000 {
        let event = next_event(&mut listener.cluster.inbox).await;
        assert_eq!(format!("{event:?}"), format!("{:?}", sent(followed, rev, "żółw 🐢")));
    }
}

#[tokio::test]
async fn a_topic_that_is_no_longer_followed_no_longer_arrives() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    let (first, second) = (chat(), chat());
    follow(&mut listener, Topic::Chat(first)).await;
    listener.cluster.bus.unfollow(Topic::Chat(first));
    follow(&mut listener, Topic::Chat(second)).await;
    speaker.cluster.bus.publish(typing(first));
    speaker.cluster.bus.publish(sent(second, 1, "hello"));
    assert_eq!(revs(&next_event(&mut listener.cluster.inbox).await), Rev(1));
}

#[tokio::test]
async fn the_end_of_a_session_reaches_every_replica() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    connected(&listener).await;
    let ended = SessionId::new(Clock::system().now(), &mut rand::rng());
    speaker.cluster.bus.publish(Event::SessionsEnded(vec![ended]));
    let event = next_event(&mut listener.cluster.inbox).await;
    assert!(matches!(event, Event::SessionsEnded(all) if all == [ended]));
}

#[tokio::test]
async fn a_large_event_arrives_as_a_resync_of_its_topic() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    // The largest text: 4,096 characters of four bytes, 16 KiB.
    speaker.cluster.bus.publish(sent(chat_id, 1, &"🐢".repeat(4096)));
    resynced(&mut listener.cluster.inbox, Topic::Chat(chat_id)).await;
}

#[tokio::test]
async fn a_message_that_no_replica_sealed_does_not_arrive() {
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let stranger = Replica::with_key(&redis_url(), &prefix, [8; 32]);
    let friend = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;

    let channel = Channel::of(Topic::Chat(chat_id)).name(&prefix);
    for body in ["", "{}", r#"{"from":1,"said":"Canary"}"#, &"x".repeat(100_000)] {
        publish_raw(&channel, body.as_bytes()).await;
    }
    stranger.cluster.bus.publish(sent(chat_id, 1, "forged"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    friend.cluster.bus.publish(sent(chat_id, 2, "true"));
    assert_eq!(revs(&next_event(&mut listener.cluster.inbox).await), Rev(2));
}

#[tokio::test]
async fn a_replica_whose_subscription_is_cut_resyncs_everything_and_receives_again() {
    let redis = OwnRedis::start().await;
    let prefix = prefix();
    let speaker = Replica::join(&redis.url(), &prefix);
    let mut listener = Replica::join(&redis.url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;

    for round in 1..=20 {
        let cut: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert!(cut >= 1);

        // One resync when the connection is cut, and one when it is replaced.
        while !matches!(next(&mut listener.cluster.inbox).await, Arrival::ResyncAll) {}
        connected(&listener).await;
        eventually("the subscription is back", async || {
            let subscribed: Vec<(String, i64)> = redis
                .command(&["PUBSUB", "NUMSUB", &Channel::of(Topic::Chat(chat_id)).name(&prefix)])
                .await;
            subscribed[0].1 == 1
        })
        .await;
        speaker.cluster.bus.publish(sent(chat_id, round, "hello"));
        assert_eq!(revs(&next_event(&mut listener.cluster.inbox).await), Rev(round));
    }
}

/// The arrivals of a listener: the revs of its events, and the time of its last resync of
/// everything.
#[derive(Default)]
struct Received {
    revs: HashSet<Rev>,
    resynced_at: Option<Instant>,
}

/// Records the arrivals until the bus ends.
async fn listen(mut inbox: BusInbox, received: Arc<Mutex<Received>>) {
    while let Some(arrival) = inbox.next().await {
        match arrival {
            Arrival::Event(event) => drop(received.lock().revs.insert(revs(&event))),
            Arrival::ResyncAll => received.lock().resynced_at = Some(Instant::now()),
            Arrival::Resync(_) => {}
        }
    }
}

/// Follows more topics than one `SUBSCRIBE` names, and cuts the connection at several points of the
/// resubscription, in the requests and in the answers. The order of the topics varies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_during_resubscription_causes_a_full_resync() {
    const TOPICS: usize = 3_000;

    let (redis, prefix) = (OwnRedis::start().await, prefix());
    let way = Proxy::to(&Proxy::target_of(&redis.url())).await;
    let speaker = Replica::join(&redis.url(), &prefix);
    let mut listener = Replica::join(&way.in_url(&redis.url()), &prefix);
    let chats: Vec<ChatId> = (0..TOPICS).map(|_| chat()).collect();
    let channel = |chat_id: &ChatId| Channel::of(Topic::Chat(*chat_id));
    let channels = chats.iter().map(channel).collect::<HashSet<_>>().len();

    connected(&listener).await;
    for chat_id in &chats {
        listener.cluster.bus.follow(Topic::Chat(*chat_id));
    }

    let (mut published, received): (Vec<Instant>, Arc<Mutex<Received>>) = Default::default();
    let inbox = std::mem::replace(&mut listener.cluster.inbox, MemoryBus::new().1);
    let mut listening = JoinSet::new();
    listening.spawn(listen(inbox, received.clone()));

    // The revs count on over all topics, so that each stands for one event.
    let publish = |published: &mut Vec<Instant>, chat_id: ChatId| {
        published.push(Instant::now());
        let rev = i64::try_from(published.len()).unwrap();
        speaker.cluster.bus.publish(sent(chat_id, rev, "hello"));
        rev
    };

    for (round, marked) in chats.iter().step_by(TOPICS / 6).enumerate() {
        let direction = if round % 2 == 0 { Way::ToServer } else { Way::ToClient };
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;

        // The cut is at this topic's name: the bytes before it in the same packet pass.
        for _ in 0..2 {
            way.set(Mode::CutAt(direction, channel(marked).name(&prefix).into_bytes()));
            let start = Instant::now();
            while way.mode() != Mode::Pass {
                assert!(start.elapsed() < ARRIVAL_MAX, "round {round}: the connection is cut");
                publish(&mut published, chats[rand::random_range(0..TOPICS)]);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        for chat_id in &chats {
            publish(&mut published, *chat_id);
        }
        eventually("every topic is subscribed", async || {
            subscribed(&redis, &prefix).await == channels
        })
        .await;
        connected(&listener).await;

        let first = publish(&mut published, chats[0]);
        let end = chats.iter().map(|chat_id| publish(&mut published, *chat_id)).last().unwrap();
        eventually("an event of every topic arrives", async || {
            let received = received.lock();
            (first..=end).all(|rev| received.revs.contains(&Rev(rev)))
        })
        .await;

        let received = received.lock();
        let resynced_at = received.resynced_at.expect("the listener resyncs everything");
        let missing =
            published.iter().zip(1..).filter(|(_, rev)| !received.revs.contains(&Rev(*rev)));
        let missed = missing.filter(|(at, _)| **at > resynced_at).count();
        assert_eq!(
            missed, 0,
            "round {round}: every event that did not arrive was published before the resync"
        );
    }
}

/// The number of channels of topics with a subscriber.
async fn subscribed(redis: &OwnRedis, prefix: &str) -> usize {
    let channels: Vec<String> =
        redis.command(&["PUBSUB", "CHANNELS", &format!("{prefix}:topics:*")]).await;
    channels.len()
}

#[tokio::test]
async fn an_event_that_could_not_be_published_becomes_a_resync_once_redis_is_back() {
    let (url, prefix) = (redis_url(), prefix());
    let way = Proxy::to(&Proxy::target_of(&url)).await;
    let speaker = Replica::join(&way.in_url(&url), &prefix);
    let mut listener = Replica::join(&url, &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    connected(&speaker).await;

    // The listener stays connected, so it has no other reason for a resync of this chat.
    way.set(Mode::Refuse);
    speaker.cluster.bus.publish(sent(chat_id, 1, "into the void"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    way.set(Mode::Pass);
    resynced(&mut listener.cluster.inbox, Topic::Chat(chat_id)).await;
}

#[tokio::test]
async fn without_redis_the_hub_resyncs_everything_every_second() {
    let mut redis = OwnRedis::start().await;
    let mut replica = Replica::join(&redis.url(), &prefix());
    connected(&replica).await;
    redis.kill();

    let mut resyncs = 0;
    let _ = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            if matches!(replica.cluster.inbox.next().await, Some(Arrival::ResyncAll)) {
                resyncs += 1;
            }
        }
    })
    .await;
    assert!((3..=40).contains(&resyncs), "{resyncs}");
}

#[tokio::test]
async fn the_end_of_a_replica_causes_a_resync_within_five_seconds() {
    let prefix = prefix();
    let mut watcher = Replica::join(&redis_url(), &prefix);
    let other = Replica::join(&redis_url(), &prefix);
    let id = other.cluster.leases.own();
    eventually("the lease of the other replica is listed", async || {
        watcher.cluster.leases.listed().contains(&id)
    })
    .await;
    connected(&watcher).await;

    // Skip the resyncs of the start.
    while let Ok(Some(_)) =
        tokio::time::timeout(Duration::from_millis(300), watcher.cluster.inbox.next()).await
    {}
    drop(other);

    let start = Instant::now();
    while !matches!(next(&mut watcher.cluster.inbox).await, Arrival::ResyncAll) {}
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_replica_that_redis_disconnects_reconnects() {
    let redis = OwnRedis::start().await;
    let mut replica = Replica::join(&redis.url(), &prefix());
    connected(&replica).await;

    let listeners = async || -> HashSet<String> {
        let list: String = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        list.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    let before = listeners().await;

    // Redis disconnects a client that loses the right to its channels.
    let _: String = redis.command(&["ACL", "SETUSER", "default", "resetchannels"]).await;
    let _: String = redis.command(&["ACL", "SETUSER", "default", "allchannels"]).await;
    while !matches!(next(&mut replica.cluster.inbox).await, Arrival::ResyncAll) {}
    eventually("another connection listens", async || {
        let now = listeners().await;
        !now.is_empty() && now.is_disjoint(&before)
    })
    .await;
}

#[tokio::test]
async fn a_replica_with_a_silent_connection_reconnects() {
    let (url, prefix) = (redis_url(), prefix());
    let way = Proxy::to(&Proxy::target_of(&url)).await;
    let speaker = Replica::join(&url, &prefix);
    let mut listener = Replica::join(&way.in_url(&url), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;

    // Open connections carry nothing from now on, without an error. New connections work.
    way.set(Mode::Strand);

    let start = Instant::now();
    let mut rev = 0;
    loop {
        rev += 1;
        speaker.cluster.bus.publish(sent(chat_id, rev, "can you hear me"));
        let waiting = tokio::time::timeout(
            Duration::from_millis(500),
            next_event(&mut listener.cluster.inbox),
        );
        if waiting.await.is_ok() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "it does not reconnect");
    }

    assert!(
        start.elapsed() > Duration::from_secs(1),
        "the connection was silent for a while: {:?}",
        start.elapsed()
    );
}
