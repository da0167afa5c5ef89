//! Version 1 of the payload of an event.
//!
//! Every type here is written out, with ids as UUIDs and times as milliseconds since 1970, so that
//! no change of a type in `model` changes a byte on the bus: the conversions stop compiling
//! instead. The strings are borrowed when an event is written, so that publishing copies no text.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::user::UserBrief;
use crate::model::{self, ChatId, MessageBody, MessageId, Rev, SessionId, Timestamp, UserId};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "nearly all events are of the large variant")]
pub enum BusEvent<'a> {
    Chat { chat_id: Uuid, rev: i64, change: Change<'a> },
    Read { chat_id: Uuid, user_id: Uuid, message_id: i64, to_all: bool },
    Typing { chat_id: Uuid, user_id: Uuid },
    ChatGone { chat_id: Uuid, user_id: Uuid },
    ChatBack { chat_id: Uuid, user_id: Uuid },
    SessionsEnded { session_ids: Vec<Uuid> },
    LoggedInAgain { session_id: Uuid, logins: i64 },
    Presence { user_id: Uuid },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change<'a> {
    Created { views: Vec<(Uuid, Chat<'a>)> },
    MessageSent(Message<'a>),
    MessageEdited(Message<'a>),
    MessageRemoved(Message<'a>),
    MemberJoined { member: Member<'a>, view: Option<Chat<'a>> },
    MemberChanged(Member<'a>),
    MemberLeft { user_id: Uuid },
    Renamed(Chat<'a>),
    Removed,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message<'a> {
    chat_id: Uuid,
    id: i64,
    rev: i64,
    sender_id: Uuid,
    kind: MessageKind,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reply_to: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    client_id: Option<Cow<'a, str>>,
    sent_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    edited_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    removed_at_ms: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat<'a> {
    id: Uuid,
    kind: ChatKind,
    name: Cow<'a, str>,
    created_at_ms: i64,
    rev: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_message_at_ms: Option<i64>,
    last_message_id: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_message: Option<LastMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    unread_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_read_message_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    role: Option<Role>,
    member_count: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    peer: Option<User<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastMessage<'a> {
    id: i64,
    sender_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<Cow<'a, str>>,
    sent_at_ms: i64,
    kind: MessageKind,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member<'a> {
    user: User<'a>,
    role: Role,
    joined_at_ms: i64,
    last_read_message_id: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User<'a> {
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    login: Option<Cow<'a, str>>,
    name: Cow<'a, str>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    Text,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatKind {
    SelfChat,
    Private,
    Group,
    Channel,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Owner,
    Admin,
    Member,
}

impl<'a> BusEvent<'a> {
    /// Converts an event for the bus. `None` for [`model::Event::Resync`], for which the header is
    /// enough.
    pub fn of(event: &'a model::Event) -> Option<Self> {
        Some(match event {
            model::Event::Chat(model::ChatEvent { chat_id, rev, change }) => {
                Self::Chat { chat_id: chat_id.0, rev: rev.0, change: change.into() }
            }
            model::Event::Read { chat_id, user_id, message_id, to_all } => Self::Read {
                chat_id: chat_id.0,
                user_id: user_id.0,
                message_id: message_id.0,
                to_all: *to_all,
            },
            model::Event::Typing { chat_id, user_id } => {
                Self::Typing { chat_id: chat_id.0, user_id: user_id.0 }
            }
            model::Event::ChatGone { chat_id, user_id } => {
                Self::ChatGone { chat_id: chat_id.0, user_id: user_id.0 }
            }
            model::Event::ChatBack { chat_id, user_id } => {
                Self::ChatBack { chat_id: chat_id.0, user_id: user_id.0 }
            }
            model::Event::SessionsEnded(sessions) => Self::SessionsEnded {
                session_ids: sessions.iter().map(|session| session.0).collect(),
            },
            model::Event::LoggedInAgain { session_id, logins } => {
                Self::LoggedInAgain { session_id: session_id.0, logins: *logins }
            }
            model::Event::Presence(user_id) => Self::Presence { user_id: user_id.0 },
            model::Event::Resync(_) => return None,
        })
    }

    /// Converts an event from the bus.
    pub fn into_event(self) -> model::Event {
        match self {
            Self::Chat { chat_id, rev, change } => {
                let (chat_id, rev) = (ChatId(chat_id), Rev(rev));
                model::Event::Chat(model::ChatEvent { chat_id, rev, change: change.into() })
            }
            Self::Read { chat_id, user_id, message_id, to_all } => model::Event::Read {
                chat_id: ChatId(chat_id),
                user_id: UserId(user_id),
                message_id: MessageId(message_id),
                to_all,
            },
            Self::Typing { chat_id, user_id } => {
                model::Event::Typing { chat_id: ChatId(chat_id), user_id: UserId(user_id) }
            }
            Self::ChatGone { chat_id, user_id } => {
                model::Event::ChatGone { chat_id: ChatId(chat_id), user_id: UserId(user_id) }
            }
            Self::ChatBack { chat_id, user_id } => {
                model::Event::ChatBack { chat_id: ChatId(chat_id), user_id: UserId(user_id) }
            }
            Self::SessionsEnded { session_ids } => {
                model::Event::SessionsEnded(session_ids.into_iter().map(SessionId).collect())
            }
            Self::LoggedInAgain { session_id, logins } => {
                model::Event::LoggedInAgain { session_id: SessionId(session_id), logins }
            }
            Self::Presence { user_id } => model::Event::Presence(UserId(user_id)),
        }
    }
}

impl<'a> From<&'a model::Change> for Change<'a> {
    fn from(change: &'a model::Change) -> Self {
        match change {
            model::Change::Created(views) => Self::Created {
                views: views.iter().map(|(user_id, view)| (user_id.0, view.into())).collect(),
            },
            model::Change::MessageSent(message) => Self::MessageSent(message.into()),
            model::Change::MessageEdited(message) => Self::MessageEdited(message.into()),
            model::Change::MessageRemoved(message) => Self::MessageRemoved(message.into()),
            model::Change::MemberJoined(joined) => Self::MemberJoined {
                member: (&joined.0).into(),
                view: joined.1.as_ref().map(Into::into),
            },
            model::Change::MemberChanged(member) => Self::MemberChanged(member.into()),
            model::Change::MemberLeft(user_id) => Self::MemberLeft { user_id: user_id.0 },
            model::Change::Renamed(chat) => Self::Renamed(chat.into()),
            model::Change::Removed => Self::Removed,
        }
    }
}

impl From<Change<'_>> for model::Change {
    fn from(change: Change<'_>) -> Self {
        match change {
            Change::Created { views } => Self::Created(
                views.into_iter().map(|(user_id, view)| (UserId(user_id), view.into())).collect(),
            ),
            Change::MessageSent(message) => Self::MessageSent(message.into()),
            Change::MessageEdited(message) => Self::MessageEdited(message.into()),
            Change::MessageRemoved(message) => Self::MessageRemoved(message.into()),
            Change::MemberJoined { member, view } => {
                Self::MemberJoined(Box::new((member.into(), view.map(Into::into))))
            }
            Change::MemberChanged(member) => Self::MemberChanged(member.into()),
            Change::MemberLeft { user_id } => Self::MemberLeft(UserId(user_id)),
            Change::Renamed(chat) => Self::Renamed(chat.into()),
            Change::Removed => Self::Removed,
        }
    }
}

// The patterns below name every field, so that a field added to a type of `model` stops the build
// here.

impl<'a> From<&'a model::Message> for Message<'a> {
    fn from(message: &'a model::Message) -> Self {
        let model::Message {
            chat_id,
            id,
            rev,
            sender_id,
            kind,
            body,
            reply_to,
            client_id,
            sent_at,
            edited_at,
            removed_at,
        } = message;
        Self {
            chat_id: chat_id.0,
            id: id.0,
            rev: rev.0,
            sender_id: sender_id.0,
            kind: (*kind).into(),
            text: body.as_ref().and_then(MessageBody::text).map(Cow::Borrowed),
            reply_to: reply_to.map(|id| id.0),
            client_id: client_id.as_deref().map(Cow::Borrowed),
            sent_at_ms: sent_at.as_ms(),
            edited_at_ms: edited_at.map(Timestamp::as_ms),
            removed_at_ms: removed_at.map(Timestamp::as_ms),
        }
    }
}

impl From<Message<'_>> for model::Message {
    fn from(message: Message<'_>) -> Self {
        let kind = message.kind.into();
        Self {
            chat_id: ChatId(message.chat_id),
            id: MessageId(message.id),
            rev: Rev(message.rev),
            sender_id: UserId(message.sender_id),
            kind,
            body: MessageBody::from_columns(kind, message.text.map(Cow::into_owned)),
            reply_to: message.reply_to.map(MessageId),
            client_id: message.client_id.map(Cow::into_owned),
            sent_at: Timestamp::from_ms(message.sent_at_ms),
            edited_at: message.edited_at_ms.map(Timestamp::from_ms),
            removed_at: message.removed_at_ms.map(Timestamp::from_ms),
        }
    }
}

impl<'a> From<&'a model::Chat> for Chat<'a> {
    fn from(chat: &'a model::Chat) -> Self {
        let model::Chat {
            id,
            kind,
            name,
            created_at,
            rev,
            last_message_at,
            last_message_id,
            last_message,
            unread_count,
            last_read_message_id,
            role,
            member_count,
            peer,
        } = chat;
        Self {
            id: id.0,
            kind: (*kind).into(),
            name: Cow::Borrowed(name),
            created_at_ms: created_at.as_ms(),
            rev: rev.0,
            last_message_at_ms: last_message_at.map(Timestamp::as_ms),
            last_message_id: last_message_id.0,
            last_message: last_message.as_ref().map(Into::into),
            unread_count: *unread_count,
            last_read_message_id: last_read_message_id.map(|id| id.0),
            role: role.map(Into::into),
            member_count: *member_count,
            peer: peer.as_ref().map(Into::into),
        }
    }
}

impl From<Chat<'_>> for model::Chat {
    fn from(chat: Chat<'_>) -> Self {
        Self {
            id: ChatId(chat.id),
            kind: chat.kind.into(),
            name: chat.name.into_owned(),
            created_at: Timestamp::from_ms(chat.created_at_ms),
            rev: Rev(chat.rev),
            last_message_at: chat.last_message_at_ms.map(Timestamp::from_ms),
            last_message_id: MessageId(chat.last_message_id),
            last_message: chat.last_message.map(Into::into),
            unread_count: chat.unread_count,
            last_read_message_id: chat.last_read_message_id.map(MessageId),
            role: chat.role.map(Into::into),
            member_count: chat.member_count,
            peer: chat.peer.map(Into::into),
        }
    }
}

impl<'a> From<&'a model::LastMessage> for LastMessage<'a> {
    fn from(message: &'a model::LastMessage) -> Self {
        let model::LastMessage { id, sender_id, text, sent_at, kind } = message;
        Self {
            id: id.0,
            sender_id: sender_id.0,
            text: text.as_deref().map(Cow::Borrowed),
            sent_at_ms: sent_at.as_ms(),
            kind: (*kind).into(),
        }
    }
}

impl From<LastMessage<'_>> for model::LastMessage {
    fn from(message: LastMessage<'_>) -> Self {
        Self {
            id: MessageId(message.id),
            sender_id: UserId(message.sender_id),
            text: message.text.map(Cow::into_owned),
            sent_at: Timestamp::from_ms(message.sent_at_ms),
            kind: message.kind.into(),
        }
    }
}

impl<'a> From<&'a model::Member> for Member<'a> {
    fn from(member: &'a model::Member) -> Self {
        let model::Member { user, role, joined_at, last_read_message_id } = member;
        Self {
            user: user.into(),
            role: (*role).into(),
            joined_at_ms: joined_at.as_ms(),
            last_read_message_id: last_read_message_id.0,
        }
    }
}

impl From<Member<'_>> for model::Member {
    fn from(member: Member<'_>) -> Self {
        Self {
            user: member.user.into(),
            role: member.role.into(),
            joined_at: Timestamp::from_ms(member.joined_at_ms),
            last_read_message_id: MessageId(member.last_read_message_id),
        }
    }
}

impl<'a> From<&'a UserBrief> for User<'a> {
    fn from(user: &'a UserBrief) -> Self {
        let UserBrief { id, login, name } = user;
        Self { id: id.0, login: login.as_deref().map(Cow::Borrowed), name: Cow::Borrowed(name) }
    }
}

impl From<User<'_>> for UserBrief {
    fn from(user: User<'_>) -> Self {
        Self {
            id: UserId(user.id),
            login: user.login.map(Cow::into_owned),
            name: user.name.into_owned(),
        }
    }
}

/// Implements the conversions between an enum of `model` and the enum of the same name here.
macro_rules! same_variants {
    ($($name:ident { $($variant:ident),+ })+) => {$(
        impl From<model::$name> for $name {
            fn from(value: model::$name) -> Self {
                match value { $(model::$name::$variant => Self::$variant),+ }
            }
        }

        impl From<$name> for model::$name {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),+ }
            }
        }
    )+};
}

same_variants! {
    MessageKind { Text }
    ChatKind { SelfChat, Private, Group, Channel }
    Role { Owner, Admin, Member }
}
