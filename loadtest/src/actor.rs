//! A user whose every request is recorded, with its times and its outcome.

use std::sync::Arc;

use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::client::{Answer, Http};
use crate::history::{Digest, History, Kind, Name, OpId, Outcome, Stream, Value};
use crate::wire::{
    ChangeList, Chat, ChatList, CurrentSession, Grant, Member, Message, MessageList,
};

/// An account and one of its sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// User id, assigned by the server.
    pub user_id: String,
    /// Login name.
    #[serde(default)]
    pub login: String,
    /// Password, for [`Actor::log_in`].
    #[serde(default)]
    pub password: String,
    /// Bearer token of the session.
    #[serde(default)]
    pub token: String,
    /// Session id; empty until [`Actor::resolve`] reads it.
    #[serde(default)]
    pub session_id: String,
}

/// A user whose requests are recorded. Clones share the user and the session.
#[derive(Clone, Debug)]
pub struct Actor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    account: Account,
    http: Http,
    history: Arc<History>,
    user: Name,
    session: Name,
}

/// An operation in progress. If it is dropped without an outcome, its outcome is recorded as
/// unknown.
#[derive(Debug)]
pub(crate) struct Pending {
    history: Arc<History>,
    id: OpId,
}

impl Pending {
    pub(crate) fn settle(self, outcome: Outcome) {
        self.history.complete(self.id, outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The history keeps the first outcome, so this has no effect after `settle`.
        self.history.complete(self.id, Outcome::Unknown);
    }
}

impl Actor {
    /// Creates a user with a session. The checker needs `account.session_id` to recognise requests
    /// of a revoked session.
    pub fn new(http: Http, history: Arc<History>, account: Account) -> Self {
        let (user, session) = (history.name(&account.user_id), history.name(&account.session_id));
        Self { inner: Arc::new(Inner { account, http, history, user, session }) }
    }

    /// Creates a user after reading the session's id from the server.
    ///
    /// # Errors
    /// If the server does not answer or rejects the token.
    pub async fn resolve(
        http: Http,
        history: Arc<History>,
        mut account: Account,
    ) -> Result<Self, String> {
        let answer: Answer<CurrentSession> =
            http.request(0, &account.token, Method::GET, "/sessions/current", None).await;
        match answer {
            Answer::Ok(current) => account.session_id = current.session.id,
            other => {
                return Err(format!("failed to read the session of {}: {other:?}", account.login));
            }
        }
        Ok(Self::new(http, history, account))
    }

    /// The user's account with its credentials.
    pub fn account(&self) -> &Account {
        &self.inner.account
    }

    /// The HTTP client for the user's requests.
    pub fn http(&self) -> &Http {
        &self.inner.http
    }

    /// The history that records the user's requests.
    pub fn history(&self) -> &Arc<History> {
        &self.inner.history
    }

    /// The user's number in the history.
    pub fn user(&self) -> Name {
        self.inner.user
    }

    /// The session's number in the history.
    pub fn session(&self) -> Name {
        self.inner.session
    }

    /// Records that an operation begins.
    pub(crate) fn begin(&self, stream: Option<Stream>, kind: Kind) -> Pending {
        let history = self.inner.history.clone();
        let id = history.invoke(self.inner.user, self.inner.session, stream, kind);
        Pending { history, id }
    }

    /// Converts an answer to the outcome that is recorded.
    pub(crate) fn outcome<T>(
        &self,
        answer: &Answer<T>,
        value: impl FnOnce(&T) -> Value,
    ) -> Outcome {
        match answer {
            Answer::Ok(done) => Outcome::Ok(value(done)),
            Answer::Refused { status, code } => {
                Outcome::Refused { status: *status, code: self.inner.history.name(code) }
            }
            Answer::Unknown => Outcome::Unknown,
        }
    }

    async fn run<T: DeserializeOwned>(
        &self,
        replica: usize,
        kind: Kind,
        request: (Method, String, Option<Json>),
        value: impl FnOnce(&T) -> Value,
    ) -> Answer<T> {
        let (method, path, body) = request;
        let pending = self.begin(None, kind);
        let answer = self
            .inner
            .http
            .request(replica, &self.inner.account.token, method, &path, body.as_ref())
            .await;
        pending.settle(self.outcome(&answer, value));
        answer
    }

    fn message(&self) -> impl FnOnce(&Message) -> Value + '_ {
        |message| Value::Message(self.inner.history.seen(message))
    }

    /// The kind under which a send is recorded.
    pub(crate) fn send_kind(&self, chat: &str, text: &str, client_id: Option<&str>) -> Kind {
        let client_id = client_id.map_or(Digest::NONE, Digest::of);
        Kind::Send { chat: self.inner.history.name(chat), text: Digest::of(text), client_id }
    }

    /// Sends a message. Its text must be unique in the run, without leading or trailing space.
    pub async fn send(
        &self,
        replica: usize,
        chat: &str,
        text: &str,
        client_id: Option<&str>,
    ) -> Answer<Message> {
        let kind = self.send_kind(chat, text, client_id);
        let mut body = json!({ "text": text });

        if let Some(client_id) = client_id {
            body["client_id"] = json!(client_id);
        }

        self.run(
            replica,
            kind,
            (Method::POST, format!("/chats/{chat}/messages"), Some(body)),
            self.message(),
        )
        .await
    }

    /// Changes a message's text. The new text must be unique in the run.
    pub async fn edit(
        &self,
        replica: usize,
        chat: &str,
        message_id: u32,
        text: &str,
    ) -> Answer<Message> {
        let kind =
            Kind::Edit { chat: self.inner.history.name(chat), message_id, text: Digest::of(text) };
        let path = format!("/chats/{chat}/messages/{message_id}");
        self.run(
            replica,
            kind,
            (Method::PATCH, path, Some(json!({ "text": text }))),
            self.message(),
        )
        .await
    }

    /// Removes a message.
    pub async fn remove(&self, replica: usize, chat: &str, message_id: u32) -> Answer<()> {
        let kind = Kind::Remove { chat: self.inner.history.name(chat), message_id };
        let path = format!("/chats/{chat}/messages/{message_id}");
        self.run(replica, kind, (Method::DELETE, path, None), done).await
    }

    /// Adds a user to a chat.
    pub async fn add_member(&self, replica: usize, chat: &str, user_id: &str) -> Answer<Member> {
        let history = &self.inner.history;
        let kind = Kind::Join { chat: history.name(chat), user: history.name(user_id) };
        let body = json!({ "user_id": user_id });
        self.run(replica, kind, (Method::POST, format!("/chats/{chat}/members"), Some(body)), done)
            .await
    }

    /// Removes a member from a chat. A user who passes their own id leaves.
    pub async fn remove_member(&self, replica: usize, chat: &str, user_id: &str) -> Answer<()> {
        let history = &self.inner.history;
        let kind = Kind::Leave { chat: history.name(chat), user: history.name(user_id) };
        self.run(
            replica,
            kind,
            (Method::DELETE, format!("/chats/{chat}/members/{user_id}"), None),
            done,
        )
        .await
    }

    /// Creates a chat of this kind (`private`, `group`, `channel`) with these members.
    pub async fn create_chat(&self, replica: usize, kind: &str, members: &[&str]) -> Answer<Chat> {
        let mut body = json!({ "kind": kind, "member_ids": members });
        if kind == "group" || kind == "channel" {
            body["name"] = json!("Crew");
        }
        let value = |chat: &Chat| Value::Chat(self.inner.history.chat_seen(chat));
        self.run(replica, Kind::Create, (Method::POST, "/chats".to_owned(), Some(body)), value)
            .await
    }

    /// Moves the user's read marker to this message.
    pub async fn mark_read(&self, replica: usize, chat: &str, message_id: u32) -> Answer<()> {
        let kind = Kind::MarkRead { chat: self.inner.history.name(chat), message_id };
        let body = json!({ "message_id": message_id });
        self.run(replica, kind, (Method::PUT, format!("/chats/{chat}/read"), Some(body)), done)
            .await
    }

    /// Reads a page of history: the newest, or the one before or after a message.
    pub async fn read_history(
        &self,
        replica: usize,
        chat: &str,
        page: HistoryPage,
    ) -> Answer<MessageList> {
        let HistoryPage { before, after, max } = page;
        let mut path = format!("/chats/{chat}/messages?max={max}");

        for (parameter, bound) in [("before", before), ("after", after)] {
            if let Some(bound) = bound {
                path = format!("{path}&{parameter}={bound}");
            }
        }

        let chat = self.inner.history.name(chat);
        // In the record, 0 means that there is no bound. `u32::MAX` stands for `after=0`.
        let after = after.map_or(0, |after| if after == 0 { u32::MAX } else { after });
        let kind = Kind::History { chat, before: before.unwrap_or(0), after, max };
        let value = |list: &MessageList| Value::Messages(self.seen_all(&list.messages));

        self.run(replica, kind, (Method::GET, path, None), value).await
    }

    /// Reads one page of a chat's changes after a revision.
    pub async fn changes(&self, replica: usize, chat: &str, after_rev: u32) -> Answer<ChangeList> {
        let kind = Kind::Changes { chat: self.inner.history.name(chat), after_rev };
        let path = format!("/chats/{chat}/changes?after_rev={after_rev}");
        let value = |list: &ChangeList| Value::Changes {
            messages: self.seen_all(&list.messages),
            rev: list.rev,
            complete: list.complete,
        };
        self.run(replica, kind, (Method::GET, path, None), value).await
    }

    /// Reads one chat.
    pub async fn chat(&self, replica: usize, chat: &str) -> Answer<Chat> {
        let kind = Kind::Chat { chat: self.inner.history.name(chat) };
        let value = |chat: &Chat| Value::Chat(self.inner.history.chat_seen(chat));
        self.run(replica, kind, (Method::GET, format!("/chats/{chat}"), None), value).await
    }

    /// Reads the first page of the user's chats.
    pub async fn chats(&self, replica: usize) -> Answer<ChatList> {
        let value = |list: &ChatList| {
            Value::Chats(list.chats.iter().map(|chat| self.inner.history.chat_seen(chat)).collect())
        };
        self.run(replica, Kind::Chats, (Method::GET, "/chats".to_owned(), None), value).await
    }

    /// Logs in again. Returns the same user with the new session.
    pub async fn log_in(&self, replica: usize) -> Answer<Self> {
        let Account { login, password, .. } = &self.inner.account;
        let pending = self.begin(None, Kind::Login);
        let body = json!({ "login": login, "password": password });
        let answer: Answer<Grant> =
            self.inner.http.request(replica, "", Method::POST, "/sessions", Some(&body)).await;

        pending.settle(
            self.outcome(&answer, |grant| {
                Value::Session(self.inner.history.name(&grant.session.id))
            }),
        );
        answer.map(|grant| {
            let account = Account {
                token: grant.token,
                session_id: grant.session.id,
                ..self.inner.account.clone()
            };
            Self::new(self.inner.http.clone(), self.inner.history.clone(), account)
        })
    }

    /// Ends one of the user's sessions.
    pub async fn revoke(&self, replica: usize, session_id: &str) -> Answer<()> {
        let kind = Kind::Revoke { session: self.inner.history.name(session_id) };
        self.run(replica, kind, (Method::DELETE, format!("/sessions/{session_id}"), None), done)
            .await
    }

    /// Reads the current session: the cheapest request that needs a session.
    pub async fn who_am_i(&self, replica: usize) -> Answer<CurrentSession> {
        self.run(replica, Kind::Other, (Method::GET, "/sessions/current".to_owned(), None), done)
            .await
    }

    fn seen_all(&self, messages: &[Message]) -> Box<[crate::history::Seen]> {
        messages.iter().map(|message| self.inner.history.seen(message)).collect()
    }
}

/// The bounds of a page of history.
#[derive(Clone, Copy, Debug, Default)]
pub struct HistoryPage {
    /// Only messages with a smaller id.
    pub before: Option<u32>,
    /// Only messages with a greater id.
    pub after: Option<u32>,
    /// Maximum number of messages; the server has a bound of its own.
    pub max: u32,
}

fn done<T>(_: &T) -> Value {
    Value::Done
}
