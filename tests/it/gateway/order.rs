//! The hub on its own: whatever the bus does to the events, each connection gets them in order,
//! each once.
//!
//! The hub under test has no bus. The tests commit to the store and deliver by hand what they like
//! of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use starling::cluster::bus::BusSender;
use starling::cluster::memory::{MemoryBus, MemoryPresence};
use starling::hub::connection::TakeOutcome;
use starling::hub::{CloseReason, Connection, Hub};
use starling::model::message::Draft;
use starling::model::{
    Change, ChatEvent, ChatId, ChatKind, Clock, Event, Message, MessageId, Rev, Role, SessionId,
    UserId,
};
use starling::presence::PresenceTracker;
use starling::store::{AddMember, Creation, NewChat, Store};
use starling::tasks::Tasks;

use crate::support::{TestServer, everywhere};

everywhere!(
    events_out_of_order_arrive_in_order,
    an_event_seen_twice_arrives_once,
    a_lost_event_is_fetched_within_a_second,
    a_lost_event_before_the_first_of_a_sync_is_fetched,
    more_lost_events_than_one_page_arrive_in_order,
    a_sync_with_an_older_snapshot_misses_nothing_of_a_newer_one,
    an_event_that_the_log_does_not_hold_delivers_nothing_and_holds_nothing_up,
    an_event_that_comes_before_the_join_is_not_lost,
    a_join_that_a_newer_snapshot_overtook_is_told_to_the_others,
    a_lost_join_is_found_by_the_slow_check,
    a_lost_removal_ends_the_stream,
    a_lost_end_of_a_session_is_found_by_the_slow_check,
    a_connection_that_is_gone_is_not_taken_in,
    any_order_loss_and_repetition_ends_in_the_whole_log,
    a_lost_message_that_was_edited_since_is_new_only_to_who_did_not_know_it,
);

/// What a hub must make up for within.
const HEALED: Duration = Duration::from_secs(1);

struct Bench {
    hub: Arc<Hub>,
    store: Store,
    clock: Clock,
    tasks: Tasks,
    numbers: AtomicU64,
    owner: UserId,
    reader: UserId,
    session: SessionId,
    chat: ChatId,
}

impl Bench {
    /// A hub, and a group of two that is at rev 1.
    async fn new(server: &TestServer) -> Self {
        let (store, clock) = (server.store().clone(), Clock::system());
        let tasks = Tasks::default();
        let bus = Arc::new(MemoryBus::new().0);
        let shared = Arc::new(MemoryPresence::default());
        let presence =
            PresenceTracker::new(shared, store.clone(), bus.clone(), clock.clone(), Duration::ZERO);
        let hub = Hub::new(store.clone(), bus, presence, clock.clone(), tasks.clone(), 1000);
        let owner =
            server.services().accounts.make_user("owner", "owner", false).await.unwrap().user_id;
        let made = server.services().accounts.make_user("reader", "reader", true).await.unwrap();
        let reader = made.user_id;
        let session =
            server.services().sessions.authenticate(&made.token.unwrap()).await.unwrap().session_id;
        let (numbers, chat) = (AtomicU64::new(1), ChatId::default());
        let mut bench = Self { hub, store, clock, tasks, numbers, owner, reader, session, chat };
        bench.chat = bench.group(vec![reader]).await;
        bench
    }

    async fn group(&self, members: Vec<UserId>) -> ChatId {
        let (now, name) = (self.clock.now(), "Crew".to_owned());
        let id = ChatId::new(now, &mut rand::rng());
        let kind = Creation::Shared { kind: ChatKind::Group, name, members };
        self.store
            .create_chat(&NewChat { id, kind, creator: self.owner, now, chats_max: 100 })
            .await
            .unwrap();
        id
    }

    /// Commits a message; its event is not delivered.
    async fn commit(&self, chat_id: ChatId) -> Event {
        self.commit_many(chat_id, 1).await.remove(0)
    }

    async fn commit_many(&self, chat_id: ChatId, count: usize) -> Vec<Event> {
        let draft = Draft {
            chat_id,
            sender_id: self.owner,
            text: "hello".into(),
            reply_to: None,
            client_id: None,
        };
        let sent = self.store.append(&vec![draft; count], self.clock.now()).await.unwrap();
        sent.into_iter().map(|sent| event(sent.unwrap().into_message())).collect()
    }

    fn deliver(&self, event: &Event) {
        self.hub.deliver(event.clone());
    }

    fn connection(&self, user_id: UserId) -> Arc<Connection> {
        self.connection_of(user_id, self.session)
    }

    fn connection_of(&self, user_id: UserId, session_id: SessionId) -> Arc<Connection> {
        let connection =
            Connection::new(self.numbers.fetch_add(1, Ordering::Relaxed), user_id, session_id, 0);
        self.hub.register(&connection, 100).now_or_never().unwrap().unwrap();
        connection
    }

    /// A connection of the reader's that is up to date at this revision.
    fn live(&self, rev: i64) -> Arc<Connection> {
        let connection = self.connection(self.reader);
        assert!(connection.hold());
        self.hub.follow(&connection, &[(self.chat, Rev(rev))]);
        self.settle(&connection, rev);
        connection
    }

    fn settle(&self, connection: &Arc<Connection>, rev: i64) {
        self.hub.settle(connection, self.chat, Some(Rev(rev).into()));
        connection.go_live(&HashMap::from([(self.chat, Rev(rev))]));
    }

    /// Runs the hub's own loop, whose first deed is to compare everything with the store.
    fn check(&self) -> BusSender {
        let (sender, inbox) = BusSender::new();
        self.tasks.spawn(self.hub.clone().run(inbox));
        sender
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn event(message: Message) -> Event {
    let (chat_id, rev) = (message.chat_id, message.rev);
    Event::Chat(ChatEvent { chat_id, rev, change: Change::MessageSent(message) })
}

/// What the connection was sent since it was last asked.
fn frames(connection: &Connection) -> Vec<Value> {
    let mut taken: Vec<Bytes> = Vec::new();
    assert!(matches!(connection.take(&mut taken, usize::MAX), TakeOutcome::Open));
    taken.iter().map(|frame| serde_json::from_slice(frame).unwrap()).collect()
}

fn revs(connection: &Connection) -> Vec<i64> {
    frames(connection)
        .iter()
        .map(|frame| frame["rev"].as_i64().unwrap_or_else(|| panic!("{frame}")))
        .collect()
}

/// Reads until this many frames are there; fails after the time in which a hub must have healed.
async fn within_a_second(connection: &Connection, count: usize) -> Vec<Value> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < HEALED, "only {all:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        all.extend(frames(connection));
    }
    all
}

fn range(first: i64, last: i64) -> Vec<i64> {
    (first..=last).collect()
}

fn revs_of(frames: &[Value]) -> Vec<i64> {
    frames.iter().filter_map(|frame| frame["rev"].as_i64()).collect()
}

async fn events_out_of_order_arrive_in_order(server: TestServer) {
    let bench = Bench::new(&server).await;
    let (first, second) = (bench.live(1), bench.live(1));
    let events = bench.commit_many(bench.chat, 5).await;
    for index in [1, 0, 4, 3] {
        bench.deliver(&events[index]);
    }
    for connection in [&first, &second] {
        assert_eq!(revs(connection), [2, 3], "what waits for the fourth is not sent before it");
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
    assert_eq!(revs(&first), [5], "late ones are known, and it goes on as ever");
}

async fn a_lost_message_that_was_edited_since_is_new_only_to_who_did_not_know_it(
    server: TestServer,
) {
    let bench = Bench::new(&server).await;
    let behind = bench.live(1);
    bench.commit(bench.chat).await;
    // Its sync told of the message, of which no event ever came.
    let ahead = bench.live(2);
    let edited = bench
        .store
        .edit_message(bench.chat, MessageId(1), bench.owner, "anew", bench.clock.now())
        .await;
    assert_eq!(edited.unwrap().0.rev, Rev(3));
    let told = [within_a_second(&behind, 1).await, within_a_second(&ahead, 1).await];
    let told = told.map(|frames| (frames[0]["type"].clone(), revs_of(&frames)));
    assert_eq!(told, [("new_message".into(), vec![3]), ("message_edited".into(), vec![3])]);
}

async fn a_lost_event_before_the_first_of_a_sync_is_fetched(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.connection(bench.reader);
    assert!(connection.hold());
    bench.hub.follow(&connection, &[(bench.chat, Rev(1))]);
    let events = bench.commit_many(bench.chat, 300).await;
    // More than wait at once, and the first is lost.
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
    // The older read its snapshot at rev 1; then three messages came, and the newer read its own.
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

async fn an_event_that_the_log_does_not_hold_delivers_nothing_and_holds_nothing_up(
    server: TestServer,
) {
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
    // The server's own hub and jobs ask now and then, too.
    assert!(bench.store.statements() - before < 20, "the hub must not ask on and on");
    let events = bench.commit_many(bench.chat, 3).await;
    for event in &events {
        bench.deliver(event);
    }
    assert_eq!(revs_of(&within_a_second(&connection, 3).await), [3, 4, 5]);
    assert_eq!(frames(&connection), [Value::Null; 0], "nothing forged may come");
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
    let told = within_a_second(&connection, 2).await;
    assert_eq!((&told[0]["type"], &told[0]["chat"]["rev"]), (&"chat_added".into(), &2.into()));
    assert_eq!((&told[1]["type"], &told[1]["rev"]), (&"new_message".into(), &3.into()));
}

async fn a_join_that_a_newer_snapshot_overtook_is_told_to_the_others(server: TestServer) {
    let bench = Bench::new(&server).await;
    let live = bench.live(1);
    let other = bench.group(Vec::new()).await;
    let joined = join(&bench, other).await;
    // Another of the user's devices syncs, and so opens the subscription, before the event of the
    // join arrives.
    let newer = bench.connection(bench.reader);
    assert!(newer.hold());
    bench.hub.follow(&newer, &[(other, Rev(2))]);
    bench.hub.settle(&newer, other, Some(Rev(2).into()));
    newer.go_live(&HashMap::from([(other, Rev(2))]));
    bench.deliver(&joined);
    let told = within_a_second(&live, 1).await;
    assert_eq!((&told[0]["type"], &told[0]["chat"]["rev"]), (&"chat_added".into(), &2.into()));
    bench.deliver(&bench.commit(other).await);
    assert_eq!((revs(&live), revs(&newer)), (vec![3], vec![3]));
}

async fn a_lost_join_is_found_by_the_slow_check(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    let other = bench.group(Vec::new()).await;
    join(&bench, other).await;
    bench.commit(other).await;
    let _bus = bench.check();
    let told = within_a_second(&connection, 1).await;
    assert_eq!((&told[0]["type"], &told[0]["chat"]["rev"]), (&"chat_added".into(), &3.into()));
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
    let told = within_a_second(&connection, 1).await;
    assert_eq!(told[0]["type"], "chat_gone");
    let told = within_a_second(&owners, 2).await;
    assert_eq!(
        (&told[0]["type"], &told[1]["type"]),
        (&"member_left".into(), &"new_message".into())
    );
    bench.deliver(&bench.commit(bench.chat).await);
    assert!(frames(&connection).is_empty());
    // Gone and back in the gap: gone first, then the chat anew, and nothing of what was in between.
    join(&bench, bench.chat).await;
    let events = bench.commit_many(bench.chat, 2).await;
    bench.deliver(&events[1]);
    let told = within_a_second(&connection, 1).await;
    assert_eq!(told[0]["type"], "chat_added");
    assert_eq!((told.len(), told[0]["chat"]["rev"].as_i64()), (1, Some(7)));
    bench.deliver(&bench.commit(bench.chat).await);
    assert_eq!(revs(&connection), [8]);
}

async fn a_lost_end_of_a_session_is_found_by_the_slow_check(server: TestServer) {
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

async fn a_connection_that_is_gone_is_not_taken_in(server: TestServer) {
    let bench = Bench::new(&server).await;
    let connection = bench.live(1);
    bench.hub.unregister(&connection);
    let weak = Arc::downgrade(&connection);
    // As if it ended while the hub made it follow the chat.
    bench.hub.follow(&connection, &[(bench.chat, Rev(1))]);
    bench.deliver(&bench.commit(bench.chat).await);
    assert!(frames(&connection).is_empty());
    drop(connection);
    assert!(weak.upgrade().is_none(), "nobody keeps it");
}

#[derive(Clone, Debug)]
enum Step {
    /// The event at this place of the log arrives.
    Deliver(usize),
    /// A connection begins its sync, having read the chat's revision long ago.
    Follow,
    /// The oldest that is still syncing reads its snapshot and ends its sync.
    Settle,
    /// The hub gets a moment.
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

async fn any_order_loss_and_repetition_ends_in_the_whole_log(server: TestServer) {
    const LOG: usize = 12;
    let bench = Bench::new(&server).await;
    let handle = tokio::runtime::Handle::current();
    let mut runner =
        TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&steps(LOG), |steps| handle.block_on(any_case(&bench, LOG, steps)))
    });
    outcome.unwrap();
}

async fn any_case(bench: &Bench, log: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
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
                // What is delivered was committed, and all before it.
                while events.len() <= index {
                    events.push(bench.commit(chat).await);
                }
                bench.deliver(&events[index]);
            }
            Step::Follow => follow(&mut syncing, events.len()),
            Step::Settle if !syncing.is_empty() => {
                settle(syncing.remove(0), events.len(), &mut synced)
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
        let told = within_a_second(&connection, count).await;
        let told: Vec<i64> = revs_of(&told);
        prop_assert_eq!(&told, &range(from + 1, last));
        prop_assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len());
        prop_assert!(frames(&connection).is_empty());
        bench.hub.unregister(&connection);
    }
    Ok(())
}
