//! Order of delivery: whatever the bus does to the events, each connection gets them in order, each
//! once.
//!
//! The hub under test has no bus. The tests commit to the store and choose the events to deliver.

mod bench;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use starling::hub::connection::TakeOutcome;
use starling::hub::{CloseReason, Connection};
use starling::model::{ChatEvent, ChatId, Event, MessageId, Rev, Role, SessionId};
use starling::store::AddMember;

use self::bench::{Bench, HEALED, frames, range, revs, revs_of, within_a_second};
use crate::support::{TestServer, everywhere};

everywhere!(
    events_out_of_order_arrive_in_order,
    an_event_seen_twice_arrives_once,
    a_lost_event_is_fetched_within_a_second,
    a_lost_event_before_the_first_of_a_sync_is_fetched,
    more_lost_events_than_one_page_arrive_in_order,
    a_sync_with_an_older_snapshot_misses_nothing_of_a_newer_one,
    an_event_missing_from_the_log_delivers_nothing_and_blocks_nothing,
    an_event_that_comes_before_the_join_is_not_lost,
    a_join_behind_a_newer_snapshot_reaches_the_users_other_connections,
    a_lost_join_is_found_by_a_resync,
    a_lost_removal_ends_the_stream,
    a_lost_end_of_a_session_is_found_by_a_resync,
    an_unregistered_connection_is_not_subscribed,
    any_order_loss_and_repetition_delivers_the_complete_log,
    a_lost_message_edited_since_is_new_only_to_connections_that_missed_it,
);

async fn events_out_of_order_arrive_in_order(server: TestServer) {
    let bench = Bench::new(&server).await;
    let (first, second) = (bench.live(1), bench.live(1));
    let events = bench.commit_many(bench.chat, 5).await;

    for index in [1, 0, 4, 3] {
        bench.deliver(&events[index]);
    }
    for connection in [&first, &second] {
        assert_eq!(revs(connection), [2, 3], "events behind a gap are held back");
    }

    bench.deliver(&events[2]);
    for connection in [&first, &second] {
        assert_eq!(revs(connection), [4, 5, 6]);
    }
}

async fn an_event_seen_twice_arrives_once(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let events = bench.commit_many(bench.chat, 3).await;
    for index in [0, 0, 2, 2, 1, 0, 1, 2] {
        bench.deliver(&events[index]);
    }
    assert_eq!(revs(&connection), [2, 3, 4]);
}

async fn a_lost_event_is_fetched_within_a_second(server: TestServer) {
    let bench = Bench::new(&server).await;
    let (first, second) = (bench.live(1), bench.live(1));
    let events = bench.commit_many(bench.chat, 3).await;

    bench.deliver(&events[2]);
    for connection in [&first, &second] {
        assert_eq!(revs_of(&within_a_second(connection, 3).await), [2, 3, 4]);
    }

    bench.deliver(&events[0]);
    bench.deliver(&bench.commit(bench.chat).await);
    assert_eq!(revs(&first), [5], "late events are dropped, new ones delivered");
}

async fn a_lost_message_edited_since_is_new_only_to_connections_that_missed_it(server: TestServer) {
    let bench = Bench::new(&server).await;
    let behind = bench.live(1);
    bench.commit(bench.chat).await;

    // This connection's sync included the message, whose event never came.
    let ahead = bench.live(2);
    let edited = bench
        .store
        .edit_message(bench.chat, MessageId(1), bench.owner, "anew", bench.clock.now())
        .await;
    assert_eq!(edited.unwrap().0.rev, Rev(3));

    let received = [within_a_second(&behind, 1).await, within_a_second(&ahead, 1).await];
    let received = received.map(|frames| (frames[0]["type"].clone(), revs_of(&frames)));
    assert_eq!(received, [("new_message".into(), vec![3]), ("message_edited".into(), vec![3])]);
}

async fn a_lost_event_before_the_first_of_a_sync_is_fetched(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.connection(bench.reader);
    assert!(connection.hold());
    bench.hub.follow(&connection, &[(bench.chat, Rev(1))]);

    let events = bench.commit_many(bench.chat, 300).await;
    // More events than can wait at once, and the first is lost.
    for event in &events[1..] {
        bench.deliver(event);
    }

    bench.settle(&connection, 1);
    assert_eq!(revs_of(&within_a_second(&connection, 300).await), range(2, 301));
}

async fn more_lost_events_than_one_page_arrive_in_order(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let mut last = bench.commit(bench.chat).await;
    for _ in 0..6 {
        last = bench.commit_many(bench.chat, 200).await.pop().unwrap();
    }
    bench.deliver(&last);
    assert_eq!(revs_of(&within_a_second(&connection, 1201).await), range(2, 1202));
}

async fn a_sync_with_an_older_snapshot_misses_nothing_of_a_newer_one(server: TestServer) {
    let bench = Bench::new(&server).await;
    let (older, newer) = (bench.connection(bench.reader), bench.connection(bench.reader));
    assert!(older.hold() && newer.hold());
    bench.hub.follow(&older, &[(bench.chat, Rev(1))]);

    // The older one read its snapshot at rev 1. Then three messages came, and the newer one read
    // its own snapshot.
    let events = bench.commit_many(bench.chat, 3).await;
    bench.deliver(&events[0]);
    bench.hub.follow(&newer, &[(bench.chat, Rev(4))]);
    bench.settle(&newer, 4);
    bench.deliver(&events[1]);
    bench.settle(&older, 1);
    bench.deliver(&events[2]);
    bench.deliver(&bench.commit(bench.chat).await);

    assert_eq!(revs_of(&within_a_second(&older, 4).await), [2, 3, 4, 5]);
    assert_eq!(revs_of(&within_a_second(&newer, 1).await), [5]);
}

async fn an_event_missing_from_the_log_delivers_nothing_and_blocks_nothing(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let Event::Chat(real) = bench.commit(bench.chat).await else { panic!() };
    bench.deliver(&Event::Chat(real.clone()));
    assert_eq!(revs(&connection), [2]);

    for ahead in [2, 1000] {
        let forged = ChatEvent { rev: Rev(real.rev.0 + ahead), ..real.clone() };
        bench.hub.deliver(Event::Chat(forged));
    }

    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = bench.store.statements();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(frames(&connection), [Value::Null; 0]);
    // The server's own hub and jobs run statements, too.
    assert!(bench.store.statements() - before < 20, "the hub must not query without end");

    let events = bench.commit_many(bench.chat, 3).await;
    for event in &events {
        bench.deliver(event);
    }
    assert_eq!(revs_of(&within_a_second(&connection, 3).await), [3, 4, 5]);
    assert_eq!(frames(&connection), [Value::Null; 0], "no forged event is delivered");
}

async fn join(bench: &Bench, chat_id: ChatId) -> Event {
    let add = AddMember {
        chat_id,
        actor: bench.owner,
        user_id: bench.reader,
        role: Role::Member,
        now: bench.clock.now(),
        members_max: 20,
        chats_max: 100,
    };
    Event::Chat(bench.store.add_member(&add).await.unwrap())
}

async fn an_event_that_comes_before_the_join_is_not_lost(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let other = bench.group(Vec::new()).await;
    let joined = join(&bench, other).await;
    let message = bench.commit(other).await;
    bench.deliver(&message);
    bench.deliver(&joined);

    let received = within_a_second(&connection, 2).await;
    assert_eq!(
        (&received[0]["type"], &received[0]["chat"]["rev"]),
        (&"chat_added".into(), &2.into())
    );
    assert_eq!((&received[1]["type"], &received[1]["rev"]), (&"new_message".into(), &3.into()));
}

async fn a_join_behind_a_newer_snapshot_reaches_the_users_other_connections(server: TestServer) {
    let bench = Bench::new(&server).await;
    let live = bench.live(1);
    let other = bench.group(Vec::new()).await;
    let joined = join(&bench, other).await;

    // Another device of the user syncs, and so subscribes to the chat, before the event of the join
    // arrives.
    let newer = bench.connection(bench.reader);
    assert!(newer.hold());
    bench.hub.follow(&newer, &[(other, Rev(2))]);
    bench.hub.settle(&newer, other, Some(Rev(2).into()));
    newer.go_live(&HashMap::from([(other, Rev(2))]));

    bench.deliver(&joined);
    let received = within_a_second(&live, 1).await;
    assert_eq!(
        (&received[0]["type"], &received[0]["chat"]["rev"]),
        (&"chat_added".into(), &2.into())
    );
    bench.deliver(&bench.commit(other).await);
    assert_eq!((revs(&live), revs(&newer)), (vec![3], vec![3]));
}

async fn a_lost_join_is_found_by_a_resync(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let other = bench.group(Vec::new()).await;
    join(&bench, other).await;
    bench.commit(other).await;

    let _bus = bench.check();
    let received = within_a_second(&connection, 1).await;
    assert_eq!(
        (&received[0]["type"], &received[0]["chat"]["rev"]),
        (&"chat_added".into(), &3.into())
    );
    bench.deliver(&bench.commit(other).await);
    assert_eq!(revs(&connection), [4]);
}

async fn a_lost_removal_ends_the_stream(server: TestServer) {
    let bench = Bench::new(&server).await;
    let (connection, owners) = (bench.live(1), bench.connection(bench.owner));
    assert!(owners.hold());
    bench.hub.follow(&owners, &[(bench.chat, Rev(1))]);
    bench.settle(&owners, 1);

    bench
        .store
        .remove_member(bench.chat, bench.owner, bench.reader, bench.clock.now())
        .await
        .unwrap();
    let after = bench.commit(bench.chat).await;
    bench.deliver(&after);

    let received = within_a_second(&connection, 1).await;
    assert_eq!(received[0]["type"], "chat_gone");
    let received = within_a_second(&owners, 2).await;
    assert_eq!(
        (&received[0]["type"], &received[1]["type"]),
        (&"member_left".into(), &"new_message".into())
    );

    bench.deliver(&bench.commit(bench.chat).await);
    assert!(frames(&connection).is_empty());

    // Added again within the gap: the connection gets the chat at its latest rev, and no event from
    // before.
    join(&bench, bench.chat).await;
    let events = bench.commit_many(bench.chat, 2).await;
    bench.deliver(&events[1]);
    let received = within_a_second(&connection, 1).await;
    assert_eq!(received[0]["type"], "chat_added");
    assert_eq!((received.len(), received[0]["chat"]["rev"].as_i64()), (1, Some(7)));
    bench.deliver(&bench.commit(bench.chat).await);
    assert_eq!(revs(&connection), [8]);
}

async fn a_lost_end_of_a_session_is_found_by_a_resync(server: TestServer) {
    let bench = Bench::new(&server).await;
    let unknown = SessionId::new(bench.clock.now(), &mut rand::rng());
    let (connection, kept) = (bench.connection_of(bench.reader, unknown), bench.live(1));
    let _bus = bench.check();

    tokio::time::timeout(HEALED, connection.closing()).await.unwrap();
    let mut taken = Vec::new();
    assert!(matches!(
        connection.take(&mut taken, usize::MAX),
        TakeOutcome::Close(CloseReason::SessionEnded)
    ));
    assert!(taken.is_empty());

    bench.deliver(&bench.commit(bench.chat).await);
    assert_eq!(revs(&kept), [2]);
}

async fn an_unregistered_connection_is_not_subscribed(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    bench.hub.unregister(&connection);
    let weak = Arc::downgrade(&connection);

    // As if the connection ended while the hub subscribed it to the chat.
    bench.hub.follow(&connection, &[(bench.chat, Rev(1))]);
    bench.deliver(&bench.commit(bench.chat).await);
    assert!(frames(&connection).is_empty());

    drop(connection);
    assert!(weak.upgrade().is_none(), "the hub holds no reference");
}

#[derive(Clone, Debug)]
enum Step {
    /// The event at this index of the log arrives.
    Deliver(usize),
    /// A connection starts its sync at the chat's present rev.
    Follow,
    /// The connection that has synced longest reads its snapshot and ends its sync.
    Settle,
    /// The hub gets 20 ms.
    Wait,
}

fn steps(log: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..log).prop_map(Step::Deliver),
        2 => Just(Step::Follow),
        2 => Just(Step::Settle),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..40)
}

async fn any_order_loss_and_repetition_delivers_the_complete_log(server: TestServer) {
    const LOG: usize = 12;
    let bench = Bench::new(&server).await;
    let handle = tokio::runtime::Handle::current();
    let mut runner =
        TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });

    let outcome = tokio::task::block_in_place(|| {
        runner.run(&steps(LOG), |steps| handle.block_on(run_case(&bench, LOG, steps)))
    });
    outcome.unwrap();
}

async fn run_case(bench: &Bench, log: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let chat = bench.group(vec![bench.reader]).await;
    let last = i64::try_from(log).unwrap() + 1;
    let mut events: Vec<Event> = Vec::new();
    let mut syncing: Vec<Arc<Connection>> = Vec::new();
    let mut synced: Vec<(Arc<Connection>, i64)> = Vec::new();

    let follow = |syncing: &mut Vec<Arc<Connection>>, rev: usize| {
        let connection = bench.connection(bench.reader);
        assert!(connection.hold());
        bench.hub.follow(&connection, &[(chat, Rev(i64::try_from(rev).unwrap() + 1))]);
        syncing.push(connection);
    };

    let settle =
        |connection: Arc<Connection>, rev: usize, synced: &mut Vec<(Arc<Connection>, i64)>| {
            let rev = i64::try_from(rev).unwrap() + 1;
            bench.hub.settle(&connection, chat, Some(Rev(rev).into()));
            connection.go_live(&HashMap::from([(chat, Rev(rev))]));
            synced.push((connection, rev));
        };

    for step in steps {
        match step {
            Step::Deliver(index) => {
                // A delivered event was committed, and all events before it.
                while events.len() <= index {
                    events.push(bench.commit(chat).await);
                }
                bench.deliver(&events[index]);
            }
            Step::Follow => follow(&mut syncing, events.len()),
            Step::Settle if !syncing.is_empty() => {
                settle(syncing.remove(0), events.len(), &mut synced);
            }
            Step::Settle => {}
            Step::Wait => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }

    for connection in std::mem::take(&mut syncing) {
        settle(connection, events.len(), &mut synced);
    }

    while events.len() < log {
        events.push(bench.commit(chat).await);
    }

    bench.deliver(&events[log - 1]);
    for (connection, from) in synced {
        let count = usize::try_from(last - from).unwrap();
        let received = within_a_second(&connection, count).await;
        let received: Vec<i64> = revs_of(&received);
        prop_assert_eq!(&received, &range(from + 1, last));
        prop_assert!(frames(&connection).is_empty());
        bench.hub.unregister(&connection);
    }
    Ok(())
}
