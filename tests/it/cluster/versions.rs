//! The bus during a rolling update, when replicas of two versions share it.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use starling::cluster::redis::Channel;
use starling::cluster::{Arrival, Bus};
use starling::model::{ChatId, Clock, Event, SessionId, Topic, UserId};

use super::bus::{chat, follow, next, next_event, sent};
use super::{Replica, next_version_message, prefix, publish_raw, sealed};
use crate::support::redis_url;

/// The metrics of this test's replicas, without those of other tests: all tasks run on one thread.
struct Counted {
    handle: PrometheusHandle,
    _recorder: metrics::LocalRecorderGuard<'static>,
}

impl Counted {
    fn start() -> Self {
        let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Self { handle: recorder.handle(), _recorder: metrics::set_default_local_recorder(recorder) }
    }

    fn count(&self, name: &str) -> u64 {
        let text = self.handle.render();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

const UNREADABLE: &str = "starling_bus_events_unreadable_total";
const FORGED: &str = "starling_bus_messages_refused_total";

#[tokio::test]
async fn an_event_of_the_next_version_resyncs_only_its_topics() {
    let counted = Counted::start();
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let friend = Replica::join(&redis_url(), &prefix);
    let user = UserId::new(Clock::system().now(), &mut rand::rng());
    let (first, second, stranger) = (chat(), chat(), chat());
    for topic in [Topic::Chat(first), Topic::Chat(second), Topic::User(user), Topic::Presence(user)]
    {
        follow(&mut listener, topic).await;
    }

    let topics_and_resyncs = [
        (vec![format!("chat:{first}")], vec![Topic::Chat(first)]),
        // The listener ignores topics that it does not follow, or of a kind that it can't parse.
        (
            vec![format!("chat:{first}"), format!("chat:{stranger}"), "planet:3".to_owned()],
            vec![Topic::Chat(first)],
        ),
        (vec![format!("user:{user}")], vec![Topic::User(user)]),
        (vec![format!("presence:{user}")], vec![Topic::Presence(user)]),
    ];

    for (topics, expected) in &topics_and_resyncs {
        let channel = Channel::of(expected[0]).name(&prefix);
        publish_raw(&channel, &next_version_message([7; 32], topics)).await;
        let arrival = next(&mut listener.cluster.inbox).await;
        assert!(
            matches!(&arrival, Arrival::Resync(resynced) if resynced == expected),
            "{topics:?}: {arrival:?}"
        );
    }

    // Nothing else arrived: not the other chat, and not everything.
    friend.cluster.bus.publish(sent(second, 1, "readable"));

    let arrival = next(&mut listener.cluster.inbox).await;
    assert!(matches!(arrival, Arrival::Event(Event::Chat(_))), "{arrival:?}");
    assert_eq!(
        (counted.count(UNREADABLE), counted.count(FORGED)),
        (topics_and_resyncs.len() as u64, 0)
    );
}

#[tokio::test]
async fn an_event_of_the_next_version_for_every_replica_resyncs_everything() {
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    follow(&mut listener, Topic::Chat(chat())).await;

    let message = next_version_message([7; 32], &["everyone".to_owned()]);
    publish_raw(&Channel::of(Topic::Everyone).name(&prefix), &message).await;
    assert!(matches!(next(&mut listener.cluster.inbox).await, Arrival::ResyncAll));
}

#[tokio::test]
async fn a_message_with_a_wrong_seal_is_refused_and_resyncs_nothing() {
    let counted = Counted::start();
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let friend = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;

    let channel = Channel::of(Topic::Chat(chat_id)).name(&prefix);
    publish_raw(&channel, &next_version_message([8; 32], &[format!("chat:{chat_id}")])).await;

    let mut damaged = next_version_message([7; 32], &[format!("chat:{chat_id}")]);
    *damaged.last_mut().unwrap() ^= 1;
    publish_raw(&channel, &damaged).await;

    friend.cluster.bus.publish(sent(chat_id, 1, "readable"));
    let arrival = next(&mut listener.cluster.inbox).await;
    assert!(matches!(arrival, Arrival::Event(Event::Chat(_))), "{arrival:?}");
    assert_eq!((counted.count(UNREADABLE), counted.count(FORGED)), (0, 2));
}

/// Servers before version 1 sealed messages without a header.
#[tokio::test]
async fn a_sealed_message_without_a_header_resyncs_everything() {
    let counted = Counted::start();
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let chat_id = chat();
    follow(&mut listener, Topic::Chat(chat_id)).await;

    let channel = Channel::of(Topic::Chat(chat_id)).name(&prefix);
    publish_raw(&channel, &sealed([7; 32], br#"{"from":1,"said":{"Event":{}}}"#)).await;
    assert!(matches!(next(&mut listener.cluster.inbox).await, Arrival::ResyncAll));
    assert_eq!((counted.count(UNREADABLE), counted.count(FORGED)), (1, 0));
}

/// Each event of the next version becomes a resync of its chat; the others arrive as they are, in
/// order.
#[tokio::test]
async fn a_listener_misses_no_event_of_the_next_version_among_those_of_the_present_one() {
    let prefix = prefix();
    let mut listener = Replica::join(&redis_url(), &prefix);
    let speaker = Replica::join(&redis_url(), &prefix);
    let (mixed, next_only) = (chat(), chat());
    for chat_id in [mixed, next_only] {
        follow(&mut listener, Topic::Chat(chat_id)).await;
    }

    let name = |chat_id: ChatId| Channel::of(Topic::Chat(chat_id)).name(&prefix);
    for rev in 1..=100 {
        speaker.cluster.bus.publish(sent(mixed, rev, "readable"));
        for chat_id in [mixed, next_only] {
            let message = next_version_message([7; 32], &[format!("chat:{chat_id}")]);
            publish_raw(&name(chat_id), &message).await;
        }
    }

    // The end of a session follows the last event of the speaker.
    speaker.cluster.bus.publish(Event::SessionsEnded(vec![SessionId::default()]));

    let (mut revs, mut ended) = (0, false);
    let (mut resynced_mixed, mut resynced_next_only) = (0, 0);
    while !ended || resynced_mixed == 0 || resynced_next_only == 0 {
        match next(&mut listener.cluster.inbox).await {
            Arrival::Event(Event::Chat(event)) => {
                revs += 1;
                assert_eq!((event.chat_id, event.rev.0), (mixed, revs));
            }
            Arrival::Event(event) => ended |= matches!(event, Event::SessionsEnded(_)),
            Arrival::Resync(topics) => {
                resynced_mixed += u32::from(topics.contains(&Topic::Chat(mixed)));
                resynced_next_only += u32::from(topics.contains(&Topic::Chat(next_only)));
            }
            Arrival::ResyncAll => panic!("a resync of everything"),
        }
    }

    assert_eq!(revs, 100);

    // A last event of the next version is not lost behind the others.
    let message = next_version_message([7; 32], &[format!("chat:{next_only}")]);
    publish_raw(&name(next_only), &message).await;

    let last = next(&mut listener.cluster.inbox).await;
    assert!(matches!(last, Arrival::Resync(_)), "{last:?}");

    // A readable event still arrives as an event.
    speaker.cluster.bus.publish(sent(next_only, 1, "readable"));
    assert!(matches!(next_event(&mut listener.cluster.inbox).await, Event::Chat(_)));
}
