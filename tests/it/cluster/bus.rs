//! The bus: what arrives, in which order, and what it says when something did not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use starling::cluster::memory::MemoryBus;
use starling::cluster::redis::Channel;
use starling::cluster::{Arrival, Bus, BusInbox};
use starling::model::{
    Change, ChatEvent, ChatId, Clock, Event, Message, MessageId, MessageKind, Rev, SessionId, Timestamp, Topic, UserId,
};
use tokio::task::JoinSet;

use super::{Replica, prefix};
use crate::support::{Mode, OwnRedis, Proxy, Way, eventually, redis_url};

/// How long an arrival may take.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

fn chat() -> ChatId {
    ChatId::new(Clock::system().now(), &mut rand::rng())
}

fn typing(chat_id: ChatId) -> Event {
    Event::Typing { chat_id, user_id: UserId::default() }
}

fn sent(chat_id: ChatId, rev: i64, text: &str) -> Event {
    let message = Message {
        chat_id,
        id: MessageId(rev),
        rev: Rev(rev),
        sender_id: UserId::default(),
        kind: MessageKind::Text,
        text: Some(text.to_owned()),
        reply_to: None,
        client_id: Some("key".to_owned()),
        sent_at: Timestamp::from_ms(1_795_305_599_123),
        edited_at: None,
        removed_at: None,
    };
    Event::Chat(ChatEvent { chat_id, rev: Rev(rev), change: Change::MessageSent(message) })
}

async fn next(inbox: &mut BusInbox) -> Arrival {
    tokio::time::timeout(ARRIVAL_MAX, inbox.next()).await.expect("something arrives").expect("the bus lives")
}

/// The next event, whatever else comes before it.
async fn next_event(inbox: &mut BusInbox) -> Event {
    loop {
        if let Arrival::Event(event) = next(inbox).await {
            return event;
        }
    }
}

/// Waits until a topic is heard.
async fn heard(inbox: &mut BusInbox, topic: Topic) {
    loop {
        if let Arrival::Look(topics) = next(inbox).await
            && topics.contains(&topic)
        {
            return;
        }
    }
}

/// Follows a topic and waits until it is heard. The bus must be connected.
async fn follow(replica: &mut Replica, topic: Topic) {
    connected(replica).await;
    replica.cluster.bus.follow(topic);
    heard(&mut replica.cluster.inbox, topic).await;
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

/// Whatever the bus, a publisher's own hub hears its events in order, followed or not.
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
async fn another_replica_hears_what_it_follows_in_order_and_unchanged() {
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
async fn what_is_followed_no_more_is_heard_no_more() {
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
async fn every_replica_hears_of_ended_sessions() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    connected(&listener).await;
    let ended = SessionId::new(Clock::system().now(), &mut rand::rng());
    speaker.cluster.bus.publish(Event::SessionsEnded(vec![ended]));
    assert!(matches!(next_event(&mut listener.cluster.inbox).await, Event::SessionsEnded(all) if all == [ended]));
}

#[tokio::test]
async fn a_large_event_is_announced_for_everyone_to_look() {
    let prefix = prefix();
    let speaker = Replica::join(&redis_url(), &prefix);
    let mut listener = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    // The largest text: 4,096 characters of four bytes, 16 KiB.
    speaker.cluster.bus.publish(sent(chat_id, 1, &"🐢".repeat(4096)));
    heard(&mut listener.cluster.inbox, Topic::Chat(chat_id)).await;
}

#[tokio::test]
async fn nothing_that_another_than_a_replica_publishes_arrives() {
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let stranger = Replica::with_key(&redis_url(), &prefix, [8; 32]);
    let friend = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    let channel = Channel::of(Topic::Chat(chat_id)).name(&prefix);
    for body in ["", "{}", r#"{"from":1,"said":"Canary"}"#, &"x".repeat(100_000)] {
        let heard: i64 = crate::support::redis_command(&redis_url(), &["PUBLISH", &channel, body]).await.unwrap();
        assert_eq!(heard, 1, "the listener is on this channel");
    }
    stranger.cluster.bus.publish(sent(chat_id, 1, "forged"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    friend.cluster.bus.publish(sent(chat_id, 2, "true"));
    assert_eq!(revs(&next_event(&mut listener.cluster.inbox).await), Rev(2));
}

#[tokio::test]
async fn a_replica_whose_subscription_is_cut_looks_at_everything_and_hears_again() {
    let redis = OwnRedis::start().await;
    let prefix = prefix();
    let speaker = Replica::join(&redis.url(), &prefix);
    let mut listener = Replica::join(&redis.url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    for round in 1..=20 {
        let cut: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert!(cut >= 1);
        // Once when it is cut, and once when it hears again.
        while !matches!(next(&mut listener.cluster.inbox).await, Arrival::Lost) {}
        connected(&listener).await;
        eventually("the subscription is back", async || {
            let subscribed: Vec<(String, i64)> =
                redis.command(&["PUBSUB", "NUMSUB", &Channel::of(Topic::Chat(chat_id)).name(&prefix)]).await;
            subscribed[0].1 == 1
        })
        .await;
        speaker.cluster.bus.publish(sent(chat_id, round, "hello"));
        assert_eq!(revs(&next_event(&mut listener.cluster.inbox).await), Rev(round));
    }
}

/// What a listener made of its arrivals: which revs it heard, and when it was told to look at everything.
#[derive(Default)]
struct Heard {
    revs: HashSet<Rev>,
    lost: Option<Instant>,
}

/// Takes what arrives, as it arrives, until the bus ends.
async fn listen(mut inbox: BusInbox, heard: Arc<Mutex<Heard>>) {
    while let Some(arrival) = inbox.next().await {
        match arrival {
            Arrival::Event(event) => drop(heard.lock().revs.insert(revs(&event))),
            Arrival::Lost => heard.lock().lost = Some(Instant::now()),
            Arrival::Look(_) => {}
        }
    }
}

/// Follows more topics than one `SUBSCRIBE` names, and cuts the connection again wherever the resubscription is: each
/// topic's name is somewhere in it, on the way there and on the way back, and the order is another each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_cut_in_the_middle_of_resubscribing_looks_at_everything_and_hears_every_topic() {
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
    let (mut published, heard): (Vec<Instant>, Arc<Mutex<Heard>>) = Default::default();
    let inbox = std::mem::replace(&mut listener.cluster.inbox, MemoryBus::new().1);
    let mut listening = JoinSet::new();
    listening.spawn(listen(inbox, heard.clone()));
    // The revs count on over all topics, so that each stands for one event.
    let say = |published: &mut Vec<Instant>, chat_id: ChatId| {
        published.push(Instant::now());
        let rev = i64::try_from(published.len()).unwrap();
        speaker.cluster.bus.publish(sent(chat_id, rev, "hello"));
        rev
    };
    for (round, marked) in chats.iter().step_by(TOPICS / 6).enumerate() {
        let direction = if round % 2 == 0 { Way::ToServer } else { Way::ToClient };
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        // As the name of this topic comes by: what is before it in the same packet goes through.
        for _ in 0..2 {
            way.set(Mode::CutAt(direction, channel(marked).name(&prefix).into_bytes()));
            let start = Instant::now();
            while way.mode() != Mode::Pass {
                assert!(start.elapsed() < ARRIVAL_MAX, "round {round}: it is cut in the middle");
                say(&mut published, chats[rand::random_range(0..TOPICS)]);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for chat_id in &chats {
            say(&mut published, *chat_id);
        }
        eventually("every topic is subscribed", async || subscribed(&redis, &prefix).await == channels).await;
        connected(&listener).await;
        let first = say(&mut published, chats[0]);
        let end = chats.iter().map(|chat_id| say(&mut published, *chat_id)).last().unwrap();
        eventually("every topic is heard", async || {
            let heard = heard.lock();
            (first..=end).all(|rev| heard.revs.contains(&Rev(rev)))
        })
        .await;
        let heard = heard.lock();
        let lost = heard.lost.expect("it looks at everything");
        let unheard = published.iter().zip(1..).filter(|(_, rev)| !heard.revs.contains(&Rev(*rev)));
        let unseen = unheard.filter(|(at, _)| **at > lost).count();
        assert_eq!(unseen, 0, "round {round}: what it did not hear was there when it looked");
    }
}

/// How many channels of topics somebody is subscribed to.
async fn subscribed(redis: &OwnRedis, prefix: &str) -> usize {
    let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS", &format!("{prefix}:topics:*")]).await;
    channels.len()
}

#[tokio::test]
async fn what_could_not_be_published_is_looked_for_once_it_can() {
    let (url, prefix) = (redis_url(), prefix());
    let way = Proxy::to(&Proxy::target_of(&url)).await;
    let speaker = Replica::join(&way.in_url(&url), &prefix);
    let mut listener = Replica::join(&url, &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    connected(&speaker).await;
    // The listener hears all the while, and has no other reason to look at this chat.
    way.set(Mode::Refuse);
    speaker.cluster.bus.publish(sent(chat_id, 1, "into the void"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    way.set(Mode::Pass);
    heard(&mut listener.cluster.inbox, Topic::Chat(chat_id)).await;
}

#[tokio::test]
async fn without_redis_the_hub_looks_at_everything_every_second() {
    let mut redis = OwnRedis::start().await;
    let mut replica = Replica::join(&redis.url(), &prefix());
    connected(&replica).await;
    redis.kill();
    let mut lost = 0;
    let _ = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            if matches!(replica.cluster.inbox.next().await, Some(Arrival::Lost)) {
                lost += 1;
            }
        }
    })
    .await;
    assert!((3..=40).contains(&lost), "{lost}");
}

#[tokio::test]
async fn a_replica_that_dies_is_noticed_within_five_seconds_and_one_that_leaves_too() {
    let prefix = prefix();
    let mut watcher = Replica::join(&redis_url(), &prefix);
    let other = Replica::join(&redis_url(), &prefix);
    let id = other.cluster.leases.own();
    eventually("both are known", async || watcher.cluster.leases.listed().contains(&id)).await;
    connected(&watcher).await;
    // What came until now is about the start.
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(300), watcher.cluster.inbox.next()).await {}
    drop(other);
    let start = Instant::now();
    while !matches!(next(&mut watcher.cluster.inbox).await, Arrival::Lost) {}
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_replica_that_redis_cuts_off_connects_anew() {
    let redis = OwnRedis::start().await;
    let mut replica = Replica::join(&redis.url(), &prefix());
    connected(&replica).await;
    let listeners = async || -> HashSet<String> {
        let list: String = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        list.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    let before = listeners().await;
    // Whose channels are forbidden is cut off.
    let _: String = redis.command(&["ACL", "SETUSER", "default", "resetchannels"]).await;
    let _: String = redis.command(&["ACL", "SETUSER", "default", "allchannels"]).await;
    while !matches!(next(&mut replica.cluster.inbox).await, Arrival::Lost) {}
    eventually("another connection listens", async || {
        let now = listeners().await;
        !now.is_empty() && now.is_disjoint(&before)
    })
    .await;
}

#[tokio::test]
async fn a_deaf_replica_connects_anew() {
    let (url, prefix) = (redis_url(), prefix());
    let way = Proxy::to(&Proxy::target_of(&url)).await;
    let speaker = Replica::join(&url, &prefix);
    let mut listener = Replica::join(&way.in_url(&url), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;
    // Its connections stay open and carry nothing any more; new ones do. Nobody says a word of it.
    way.set(Mode::Strand);
    let start = Instant::now();
    let mut rev = 0;
    loop {
        rev += 1;
        speaker.cluster.bus.publish(sent(chat_id, rev, "can you hear me"));
        let waiting = tokio::time::timeout(Duration::from_millis(500), next_event(&mut listener.cluster.inbox));
        if waiting.await.is_ok() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "it stays deaf");
    }
    assert!(start.elapsed() > Duration::from_secs(1), "it was deaf for a while: {:?}", start.elapsed());
}
