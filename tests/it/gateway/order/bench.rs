//! A hub without a bus, and the connections to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::Value;
use starling::cluster::bus::BusSender;
use starling::cluster::memory::{MemoryBus, MemoryPresence};
use starling::hub::connection::TakeOutcome;
use starling::hub::{Connection, Hub};
use starling::model::message::Draft;
use starling::model::{
    Change, ChatEvent, ChatId, ChatKind, Clock, Event, Message, MessageBody, Rev, SessionId, UserId,
};
use starling::presence::PresenceTracker;
use starling::store::{Creation, NewChat, Store};
use starling::tasks::Tasks;

use crate::support::TestServer;

/// The most time for the hub to fetch a lost event.
pub(super) const HEALED: Duration = Duration::from_secs(1);

pub(super) struct Bench {
    pub(super) hub: Arc<Hub>,
    pub(super) store: Store,
    pub(super) clock: Clock,
    tasks: Tasks,
    numbers: AtomicU64,
    pub(super) owner: UserId,
    pub(super) reader: UserId,
    session: SessionId,
    pub(super) chat: ChatId,
}

impl Bench {
    /// A hub, and a group of two members at rev 1.
    pub(super) async fn new(server: &TestServer) -> Self {
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

    pub(super) async fn group(&self, members: Vec<UserId>) -> ChatId {
        let (now, name) = (self.clock.now(), "Crew".to_owned());
        let id = ChatId::new(now, &mut rand::rng());
        let kind = Creation::Shared { kind: ChatKind::Group, name, members };
        self.store
            .create_chat(&NewChat { id, kind, creator: self.owner, now, chats_max: 100 })
            .await
            .unwrap();
        id
    }

    /// Commits a message without delivering its event.
    pub(super) async fn commit(&self, chat_id: ChatId) -> Event {
        self.commit_many(chat_id, 1).await.remove(0)
    }

    pub(super) async fn commit_many(&self, chat_id: ChatId, count: usize) -> Vec<Event> {
        let draft = Draft {
            chat_id,
            sender_id: self.owner,
            body: MessageBody::Text("hello".into()),
            reply_to: None,
            client_id: None,
        };

        let sent = self.store.append(&vec![draft; count], self.clock.now()).await.unwrap();
        sent.into_iter().map(|sent| event(sent.unwrap().into_message())).collect()
    }

    pub(super) fn deliver(&self, event: &Event) {
        self.hub.deliver(event.clone());
    }

    pub(super) fn connection(&self, user_id: UserId) -> Arc<Connection> {
        self.connection_of(user_id, self.session)
    }

    pub(super) fn connection_of(&self, user_id: UserId, session_id: SessionId) -> Arc<Connection> {
        let connection =
            Connection::new(self.numbers.fetch_add(1, Ordering::Relaxed), user_id, session_id, 0);
        self.hub.register(&connection, 100).now_or_never().unwrap().unwrap();
        connection
    }

    /// A synced connection of the reader at this rev.
    pub(super) fn live(&self, rev: i64) -> Arc<Connection> {
        let connection = self.connection(self.reader);
        assert!(connection.hold());
        self.hub.follow(&connection, &[(self.chat, Rev(rev))]);
        self.settle(&connection, rev);
        connection
    }

    pub(super) fn settle(&self, connection: &Arc<Connection>, rev: i64) {
        self.hub.settle(connection, self.chat, Some(Rev(rev).into()));
        connection.go_live(&HashMap::from([(self.chat, Rev(rev))]));
    }

    /// Runs the hub's loop, which starts with a full resync.
    pub(super) fn check(&self) -> BusSender {
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

/// The frames that the connection got since the last call.
pub(super) fn frames(connection: &Connection) -> Vec<Value> {
    let mut taken: Vec<Bytes> = Vec::new();
    assert!(matches!(connection.take(&mut taken, usize::MAX), TakeOutcome::Open));
    taken.iter().map(|frame| serde_json::from_slice(frame).unwrap()).collect()
}

pub(super) fn revs(connection: &Connection) -> Vec<i64> {
    frames(connection)
        .iter()
        .map(|frame| frame["rev"].as_i64().unwrap_or_else(|| panic!("{frame}")))
        .collect()
}

/// Reads until this many frames have arrived; fails after [`HEALED`].
pub(super) async fn within_a_second(connection: &Connection, count: usize) -> Vec<Value> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < HEALED, "only {all:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        all.extend(frames(connection));
    }
    all
}

pub(super) fn range(first: i64, last: i64) -> Vec<i64> {
    (first..=last).collect()
}

pub(super) fn revs_of(frames: &[Value]) -> Vec<i64> {
    frames.iter().filter_map(|frame| frame["rev"].as_i64()).collect()
}
