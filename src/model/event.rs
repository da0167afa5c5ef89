//! What happened: the values that travel from the service over the bus to every hub.

use serde::{Deserialize, Serialize};

use super::{Chat, ChatId, Member, Message, MessageId, Rev, SessionId, UserId};

/// One durable change of a chat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChatEvent {
    /// The chat.
    pub chat_id: ChatId,
    /// The revision that the change produced.
    pub rev: Rev,
    /// What changed.
    pub change: Change,
}

/// The kinds of durable change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// The chat came to be; what each first member sees of it.
    Created(Vec<(UserId, Chat)>),
    /// A message was sent.
    MessageSent(Message),
    /// A message's text changed.
    MessageEdited(Message),
    /// A message lost its text; what is left of it.
    MessageRemoved(Message),
    /// Somebody joined, and what they see of the chat; absent when it was read back from the store.
    MemberJoined(Box<(Member, Option<Chat>)>),
    /// A member's role changed.
    MemberChanged(Member),
    /// Somebody left or was removed.
    MemberLeft(UserId),
    /// The chat's name changed.
    Renamed(Chat),
    /// The chat was removed for all.
    Removed,
}

impl Change {
    /// The message that changed, if it was one.
    pub fn message_id(&self) -> Option<MessageId> {
        match self {
            Self::MessageSent(message) | Self::MessageEdited(message) | Self::MessageRemoved(message) => {
                Some(message.id)
            }
            _ => None,
        }
    }

    /// What became of a message, as the protocol has it: new to whoever knows nothing of it, however often it changed since.
    pub fn of_message(message: Message, is_known: bool) -> Self {
        if !is_known {
            Self::MessageSent(message)
        } else if message.removed_at.is_some() {
            Self::MessageRemoved(message)
        } else {
            Self::MessageEdited(message)
        }
    }

    /// The member who joined, left or got another role by this change.
    pub fn member(&self) -> Option<UserId> {
        match self {
            Self::MemberJoined(joined) => Some(joined.0.user.id),
            Self::MemberChanged(member) => Some(member.user.id),
            Self::MemberLeft(user_id) => Some(*user_id),
            _ => None,
        }
    }

    /// Who enters the chat by this change.
    pub fn joiners(&self) -> impl Iterator<Item = UserId> {
        let created: &[(UserId, Chat)] = if let Self::Created(views) = self { views } else { &[] };
        let joined = if let Self::MemberJoined(joined) = self { Some(joined.0.user.id) } else { None };
        created.iter().map(|(user_id, _)| *user_id).chain(joined)
    }
}

/// Everything that travels on the bus.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "the large one is nearly all of them")]
pub enum Event {
    /// A durable change: may be lost on the way, since the hub notices by its `rev` and asks the store.
    Chat(ChatEvent),
    /// A member's read marker moved.
    Read {
        /// The chat.
        chat_id: ChatId,
        /// Whose marker.
        user_id: UserId,
        /// Where it is now.
        message_id: MessageId,
        /// Whether the other members hear of it; in channels they don't.
        to_all: bool,
    },
    /// A member is typing. May be lost.
    Typing {
        /// The chat.
        chat_id: ChatId,
        /// Who.
        user_id: UserId,
    },
    /// A self or private chat left the user's list.
    ChatGone {
        /// The chat.
        chat_id: ChatId,
        /// Whose list.
        user_id: UserId,
    },
    /// A self or private chat is back in the user's list: they asked for it. It may have gone on since.
    ChatBack {
        /// The chat.
        chat_id: ChatId,
        /// Whose list.
        user_id: UserId,
    },
    /// These sessions are over: their connections close.
    SessionsEnded(Vec<SessionId>),
    /// A login went into a live session: the connections of the logins before it close.
    LoggedInAgain {
        /// The session.
        session_id: SessionId,
        /// Logins into it after the first, now.
        logins: i64,
    },
    /// A user may have come online or gone offline: whoever watches looks again.
    Presence(UserId),
    /// A unit of work that was to change these ended with an unknown outcome: compare them with the store.
    Resync(Vec<Topic>),
}

/// Where an event is announced: whom it may concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// Those who follow a chat.
    Chat(ChatId),
    /// The connections of a user, whatever they follow.
    User(UserId),
    /// Those who watch whether a user is online.
    Presence(UserId),
    /// Every replica.
    Everyone,
}

impl Event {
    /// Where this event is announced. More than one: whoever joins a chat does not follow it yet.
    pub fn topics(&self) -> Vec<Topic> {
        match self {
            Self::Chat(event) => {
                let joiners = event.change.joiners().map(Topic::User);
                std::iter::once(Topic::Chat(event.chat_id)).chain(joiners).collect()
            }
            Self::Read { chat_id, .. }
            | Self::Typing { chat_id, .. }
            | Self::ChatGone { chat_id, .. }
            | Self::ChatBack { chat_id, .. } => vec![Topic::Chat(*chat_id)],
            Self::SessionsEnded(_) | Self::LoggedInAgain { .. } => vec![Topic::Everyone],
            Self::Presence(user_id) => vec![Topic::Presence(*user_id)],
            Self::Resync(topics) => topics.clone(),
        }
    }
}
