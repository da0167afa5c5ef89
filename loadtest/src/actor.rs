//! A user whose every request is recorded: when it was sent, and what became of it.

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

/// An account, and a session of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Its id.
    pub user_id: String,
    /// What it logs in with.
    #[serde(default)]
    pub login: String,
    /// Its password.
    #[serde(default)]
    pub password: String,
    /// The session's token.
    #[serde(default)]
    pub token: String,
    /// The session's id; empty while unknown.
    #[serde(default)]
    pub session_id: String,
}

/// A user who acts and records. Clones are the same user with the same session.
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

/// An operation under way. Dropped without an answer, it is recorded as unknown: nothing is left
/// open.
#[derive(Debug)]
pub(crate) struct Pending {
    history: Arc<History>,
    id: OpId,
}

impl Pending {
    /// Records what became of it.
    pub(crate) fn settle(self, outcome: Outcome) {
        self.history.complete(self.id, outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The first outcome counts, so this is for those without one.
        self.history.complete(self.id, Outcome::Unknown);
    }
}

impl Actor {
    /// A user with a session. `account.session_id` should be known, for the checker to tell revoked
    /// sessions apart.
    pub fn new(http: Http, history: Arc<History>, account: Account) -> Self {
        let (user, session) = (history.name(&account.user_id), history.name(&account.session_id));
        Self { inner: Arc::new(Inner { account, http, history, user, session }) }
    }

    /// A user whose session's id is asked for first.
    ///
    /// # Errors
    /// If the server does not answer, or does not know the token.
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
                return Err(format!(
                    "the session of {} could not be read: {other:?}",
                    account.login
                ));
            }
        }
        Ok(Self::new(http, history, account))
    }

    /// The account.
    pub fn account(&self) -> &Account {
        &self.inner.account
    }

    /// The client that carries its requests.
    pub fn http(&self) -> &Http {
        &self.inner.http
    }

    /// Where its requests are recorded.
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

    /// Notes that an operation begins.
    pub(crate) fn begin(&self, stream: Option<Stream>, kind: Kind) -> Pending {
        let history = self.inner.history.clone();
        let id = history.invoke(self.inner.user, self.inner.session, stream, kind);
        Pending { history, id }
    }

    /// What an answer means for the record.
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

    /// The kind of a send, as the record keeps it.
    pub(crate) fn send_kind(&self, chat: &str, text: &str, client_id: Option<&str>) -> Kind {
        let client_id = client_id.map_or(Digest::NONE, Digest::of);
        Kind::Send { chat: self.inner.history.name(chat), text: Digest::of(text), client_id }
    }

    /// Sends a message. Its text must be unique in the run, and without space around it.
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

    /// Changes a message's text. The new one must be unique in the run.
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

    /// Adds a member.
    pub async fn add_member(&self, replica: usize, chat: &str, user_id: &str) -> Answer<Member> {
        let history = &self.inner.history;
        let kind = Kind::Join { chat: history.name(chat), user: history.name(user_id) };
        let body = json!({ "user_id": user_id });
        self.run(replica, kind, (Method::POST, format!("/chats/{chat}/members"), Some(body)), done)
            .await
    }

    /// Removes a member; oneself to leave.
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

    /// Makes a chat of this kind (`private`, `group`, `channel`) with these members.
    pub async fn create_chat(&self, replica: usize, kind: &str, members: &[&str]) -> Answer<Chat> {
        let mut body = json!({ "kind": kind, "member_ids": members });
        if kind == "group" || kind == "channel" {
            body["name"] = json!("Crew");
        }
        let value = |chat: &Chat| Value::Chat(self.inner.history.chat_seen(chat));
        self.run(replica, Kind::Create, (Method::POST, "/chats".to_owned(), Some(body)), value)
            .await
    }

    /// Moves the read marker.
    pub async fn mark_read(&self, replica: usize, chat: &str, message_id: u32) -> Answer<()> {
        let kind = Kind::MarkRead { chat: self.inner.history.name(chat), message_id };
        let body = json!({ "message_id": message_id });
        self.run(replica, kind, (Method::PUT, format!("/chats/{chat}/read"), Some(body)), done)
            .await
    }

    /// A page of history: the newest one, or the one before or after a message.
    pub async fn read_history(
        &self,
        replica: usize,
        chat: &str,
        page: HistoryPage,
    ) -> Answer<MessageList> {
        let HistoryPage { before, after, max } = page;
        let mut path = format!("/chats/{chat}/messages?max={max}");
        for (word, bound) in [("before", before), ("after", after)] {
            if let Some(bound) = bound {
                path = format!("{path}&{word}={bound}");
            }
        }
        let chat = self.inner.history.name(chat);
        // `after=0` is a bound, but in the record 0 means none; `u32::MAX` stands for it.
        let after = after.map_or(0, |after| if after == 0 { u32::MAX } else { after });
        let kind = Kind::History { chat, before: before.unwrap_or(0), after, max };
        let value = |list: &MessageList| Value::Messages(self.seen_all(&list.messages));
        self.run(replica, kind, (Method::GET, path, None), value).await
    }

    /// What changed in a chat after a revision: one page.
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

    /// One chat.
    pub async fn chat(&self, replica: usize, chat: &str) -> Answer<Chat> {
        let kind = Kind::Chat { chat: self.inner.history.name(chat) };
        let value = |chat: &Chat| Value::Chat(self.inner.history.chat_seen(chat));
        self.run(replica, kind, (Method::GET, format!("/chats/{chat}"), None), value).await
    }

    /// The first page of the caller's chats.
    pub async fn chats(&self, replica: usize) -> Answer<ChatList> {
        let value = |list: &ChatList| {
            Value::Chats(list.chats.iter().map(|chat| self.inner.history.chat_seen(chat)).collect())
        };
        self.run(replica, Kind::Chats, (Method::GET, "/chats".to_owned(), None), value).await
    }

    /// Logs in once more: the same user with a new session.
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

    /// Asks who the session belongs to: the cheapest request that needs one.
    pub async fn who_am_i(&self, replica: usize) -> Answer<CurrentSession> {
        self.run(replica, Kind::Other, (Method::GET, "/sessions/current".to_owned(), None), done)
            .await
    }

    fn seen_all(&self, messages: &[Message]) -> Box<[crate::history::Seen]> {
        messages.iter().map(|message| self.inner.history.seen(message)).collect()
    }
}

/// Which page of a chat's history.
#[derive(Clone, Copy, Debug, Default)]
pub struct HistoryPage {
    /// Before this message.
    pub before: Option<u32>,
    /// After this message.
    pub after: Option<u32>,
    /// Messages at most; the server has a bound of its own.
    pub max: u32,
}

fn done<T>(_: &T) -> Value {
    Value::Done
}
