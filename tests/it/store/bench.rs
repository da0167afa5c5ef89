//! A store with users and chats, and a client that follows the changes of a chat.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use starling::model::event::ChatEvent;
use starling::model::limits::CHATS_PER_USER_MAX;
use starling::model::message::{Draft, Sent};
use starling::model::session::Caller;
use starling::model::token::TokenHash;
use starling::model::{
    Change, ChatId, ChatKind, Clock, Code, Member, Message, MessageBody, MessageId, Result, Rev,
    Role, SessionId, Timestamp, UserId,
};
use starling::store::{
    AddMember, Changes, Creation, HistoryRange, Invite, NewChat, NewSession, NewUser, Opened,
    SessionTokens, Store, StoreOptions,
};
use tempfile::TempDir;

use crate::support::{Backend, Database};

/// Runs each named test once on an SQLite store and once on a Postgres store.
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::bench::run(crate::support::Backend::Sqlite, super::$name).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::bench::run(crate::support::Backend::Postgres, super::$name).await;
            })+
        }
    };
}
pub(crate) use on_both_stores;

pub async fn run<F: Future<Output = ()>>(backend: Backend, test: impl FnOnce(Arc<Bench>) -> F) {
    let bench = Arc::new(Bench::new(backend).await);
    test(bench.clone()).await;
    bench.store.close().await;
    bench.database.remove().await;
}

/// The database of one test, and a store on it.
pub struct Bench {
    pub store: Store,
    pub clock: Clock,
    database: Database,
    dir: TempDir,
}

/// The password hash of users who never log in.
pub const NO_HASH: &str = "none";

/// A random name.
pub fn word() -> String {
    format!("w{:016x}", rand::random::<u64>())
}

fn hash() -> TokenHash {
    TokenHash(rand::random())
}

impl Bench {
    async fn new(backend: Backend) -> Self {
        let database = Database::create(backend).await;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&options(&database, dir.path().to_owned())).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, clock: Clock::system(), database, dir }
    }

    /// Another store on the same database. The database can't distinguish it from another process.
    pub async fn another_store(&self) -> Store {
        Store::open(&options(&self.database, self.dir.path().to_owned())).await.unwrap()
    }

    /// The URL of the database, for statements that the store does not offer.
    pub fn url(&self) -> String {
        let file = self.dir.path().join("starling.db");
        self.database.url().unwrap_or_else(|| format!("sqlite://{}", file.display()))
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn new_user(&self) -> NewUser {
        let (id, login, created_at) =
            (UserId::new(self.now(), &mut rand::rng()), word(), self.now());
        NewUser { id, name: login.clone(), login, password_hash: NO_HASH.to_owned(), created_at }
    }

    pub async fn user(&self) -> UserId {
        let user = self.new_user();
        self.store.create_user(&user).await.unwrap();
        user.id
    }

    pub async fn users(&self, count: usize) -> Vec<UserId> {
        let mut users = Vec::new();
        for _ in 0..count {
            users.push(self.user().await);
        }
        users
    }

    pub fn new_chat(&self, creator: UserId, kind: Creation) -> NewChat {
        NewChat {
            id: ChatId::new(self.now(), &mut rand::rng()),
            kind,
            creator,
            now: self.now(),
            chats_max: CHATS_PER_USER_MAX,
        }
    }

    pub async fn shared(&self, kind: ChatKind, owner: UserId, members: &[UserId]) -> ChatId {
        let kind = Creation::Shared { kind, name: "Crew".to_owned(), members: members.to_vec() };
        let new = self.new_chat(owner, kind);
        assert!(matches!(self.store.create_chat(&new).await.unwrap(), Opened::New(_)));
        new.id
    }

    pub async fn group(&self, owner: UserId, members: &[UserId]) -> ChatId {
        self.shared(ChatKind::Group, owner, members).await
    }

    pub fn adding(&self, chat_id: ChatId, actor: UserId, user_id: UserId) -> AddMember {
        let (role, now) = (Role::Member, self.now());
        AddMember { chat_id, actor, user_id, role, now, members_max: 1000, chats_max: 1000 }
    }

    pub async fn add(&self, chat_id: ChatId, actor: UserId, user_id: UserId) -> ChatEvent {
        self.store.add_member(&self.adding(chat_id, actor, user_id)).await.unwrap()
    }

    /// Ends an account and leaves its chats, as the server does. Returns the changes of the chats.
    pub async fn remove_account(&self, user_id: UserId) -> Vec<ChatEvent> {
        self.store.end_account(user_id, NO_HASH, self.now()).await.unwrap();
        let mut events = Vec::new();
        for (chat_id, _) in self.store.chat_heads(user_id).await.unwrap() {
            events.extend(self.store.depart(chat_id, user_id, self.now()).await.unwrap());
        }
        self.store.finish_removal(user_id).await.unwrap();
        events
    }

    /// Sends one message.
    pub async fn say(&self, chat_id: ChatId, sender_id: UserId, text: &str) -> Message {
        let appended =
            self.store.append(&[draft(chat_id, sender_id, text)], self.now()).await.unwrap();
        appended.into_iter().next().unwrap().unwrap().into_message()
    }

    /// A session that expires after `life_ms`.
    pub fn new_session(&self, user_id: UserId, life_ms: i64) -> NewSession {
        let now = self.now();
        let end = Timestamp::from_ms(now.as_ms() + life_ms);
        let tokens = SessionTokens {
            token: hash(),
            refresh: hash(),
            token_expires_at: end,
            expires_at: end,
        };
        NewSession {
            id: SessionId::new(now, &mut rand::rng()),
            user_id,
            tokens,
            device: None,
            ip: None,
            now,
        }
    }

    /// The caller of a request with this session.
    pub fn caller(new: &NewSession) -> Caller {
        let (user_id, session_id) = (new.user_id, new.id);
        Caller {
            user_id,
            session_id,
            expires_at: new.tokens.token_expires_at,
            last_seen_at: new.now,
            logins: 0,
        }
    }

    pub fn new_invite(&self, uses_left: i64, life_ms: i64) -> Invite {
        let now = self.now();
        let expires_at_ms = Timestamp::from_ms(now.as_ms() + life_ms);
        Invite { code: word(), uses_left, expires_at_ms, created_at_ms: now }
    }

    /// All messages of a chat, oldest first, as a member sees them.
    pub async fn log(&self, chat_id: ChatId, user_id: UserId) -> Vec<Message> {
        let range = HistoryRange { after: Some(MessageId(0)), before: None, max: 1_000_000 };
        self.store.history(chat_id, user_id, range).await.unwrap()
    }
}

fn options(database: &Database, dir: PathBuf) -> StoreOptions {
    match database.url() {
        Some(url) => StoreOptions::Postgres { url, connections_max: 8 },
        None => StoreOptions::Sqlite { dir },
    }
}

pub fn draft(chat_id: ChatId, sender_id: UserId, text: &str) -> Draft {
    Draft {
        chat_id,
        sender_id,
        body: MessageBody::Text(text.to_owned()),
        reply_to: None,
        client_id: None,
    }
}

pub fn keyed(chat_id: ChatId, sender_id: UserId, text: &str, key: &str) -> Draft {
    Draft { client_id: Some(key.to_owned()), ..draft(chat_id, sender_id, text) }
}

#[track_caller]
pub fn new(sent: &Result<Sent>) -> &Message {
    match sent {
        Ok(Sent::New(message)) => message,
        other => panic!("expected a new message: {other:?}"),
    }
}

#[track_caller]
pub fn repeated(sent: &Result<Sent>) -> &Message {
    match sent {
        Ok(Sent::Repeated(message)) => message,
        other => panic!("expected a repeat: {other:?}"),
    }
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: &Result<T>, code: Code) {
    assert_eq!(result.as_ref().err().map(|error| error.code), Some(code), "{result:?}");
}

/// A chat as a client sees it that reads only pages of changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    pub rev: Rev,
    pub messages: BTreeMap<MessageId, Message>,
    pub members: BTreeMap<UserId, Member>,
    pub name: String,
}

impl Fold {
    /// Applies a page, and checks its promises.
    pub fn take(&mut self, page: Changes) {
        let mut last = self.rev;
        for (rev, change) in page.items {
            assert!(
                rev >= last && rev > self.rev && rev <= page.rev,
                "{rev} in a page from {} to {}",
                self.rev,
                page.rev
            );
            last = rev;

            match change {
                Change::MessageSent(message) => {
                    assert!(self.messages.insert(message.id, message).is_none(), "it was new");
                }
                // The message may be on none of the earlier pages: it had changed again by then.
                Change::MessageEdited(message) | Change::MessageRemoved(message) => {
                    self.messages.insert(message.id, message);
                }
                Change::MemberJoined(joined) => {
                    drop(self.members.insert(joined.0.user.id, joined.0));
                }
                Change::MemberChanged(member) => drop(self.members.insert(member.user.id, member)),
                Change::MemberLeft(user_id) => drop(self.members.remove(&user_id)),
                Change::Renamed(chat) => self.name = chat.name,
                Change::Created(_) | Change::Removed => panic!("a change that no page has"),
            }
        }
        self.rev = page.rev;
    }

    /// Applies pages of `max` changes up to the last.
    pub async fn follow(&mut self, store: &Store, chat_id: ChatId, max: i64) {
        loop {
            let page = store
                .changes(chat_id, None, self.rev, max)
                .await
                .unwrap()
                .expect("the chat is there");
            let complete = page.complete;
            assert!(complete || page.rev > self.rev, "each page advances");
            self.take(page);
            if complete {
                return;
            }
        }
    }
}
