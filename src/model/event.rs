//! Events: what the service announces over the bus to every hub. Their format between replicas is
//! in `wire`, so these types have no format of their own.

use super::{Chat, ChatId, Member, Message, MessageId, Rev, SessionId, UserId};

/// One durable change of a chat.
#[derive(Clone, Debug)]
pub struct ChatEvent {
    /// The chat.
    pub chat_id: ChatId,
    /// The revision that the change produced.
    pub rev: Rev,
    /// What changed.
    pub change: Change,
}

/// The kinds of durable change.
#[derive(Clone, Debug)]
pub enum Change {
    /// The chat was created; the view of it that each first member has.
    Created(Vec<(UserId, Chat)>),
    /// A message was sent.
    MessageSent(Message),
    /// A message's text changed.
    MessageEdited(Message),
    /// A message was removed; it keeps its place without a text.
    MessageRemoved(Message),
    /// A user joined, with the user's view of the chat; the view is absent when the change was read
    /// back from the store.
    MemberJoined(Box<(Member, Option<Chat>)>),
    /// A member's role changed.
    MemberChanged(Member),
    /// A member left or was removed.
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
            Self::MessageSent(message)
            | Self::MessageEdited(message)
            | Self::MessageRemoved(message) => Some(message.id),
            _ => None,
        }
    }

    /// The change that a message stands for in the protocol: to a client that does not know the
    /// message it is new, however often it changed since.
    pub fn of_message(message: Message, is_known: bool) -> Self {
        if !is_known {
            Self::MessageSent(message)
        } else if message.removed_at.is_some() {
            Self::MessageRemoved(message)
        } else {
            Self::MessageEdited(message)
        }
    }

    /// The member that joined, left or got another role by this change.
    pub fn member(&self) -> Option<UserId> {
        match self {
            Self::MemberJoined(joined) => Some(joined.0.user.id),
            Self::MemberChanged(member) => Some(member.user.id),
            Self::MemberLeft(user_id) => Some(*user_id),
            _ => None,
        }
    }

    /// The users that enter the chat by this change.
    pub fn joiners(&self) -> impl Iterator<Item = UserId> {
        let created: &[(UserId, Chat)] = if let Self::Created(views) = self { views } else { &[] };
        let joined =
            if let Self::MemberJoined(joined) = self { Some(joined.0.user.id) } else { None };
        created.iter().map(|(user_id, _)| *user_id).chain(joined)
    }
}

/// Everything that is published on the bus.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is nearly all of them")]
pub enum Event {
    /// A durable change. It may be lost on the way: the hub notices the gap by its `rev` and asks
    /// the store.
    Chat(ChatEvent),
    /// A member's read marker moved.
    Read {
        /// The chat.
        chat_id: ChatId,
        /// The member whose marker it is.
        user_id: UserId,
        /// Where it is now.
        message_id: MessageId,
        /// Whether the other members get the event; in channels they don't.
        to_all: bool,
    },
    /// A member is typing. May be lost.
    Typing {
        /// The chat.
        chat_id: ChatId,
        /// The member who types.
        user_id: UserId,
    },
    /// A self or private chat left the user's list.
    ChatGone {
        /// The chat.
        chat_id: ChatId,
        /// The user whose list it is.
        user_id: UserId,
    },
    /// A self or private chat is back in the user's list, at the user's request. It may have
    /// changed since.
    ChatBack {
        /// The chat.
        chat_id: ChatId,
        /// The user whose list it is.
        user_id: UserId,
    },
    /// These sessions ended: their connections close.
    SessionsEnded(Vec<SessionId>),
    /// A login went into a live session: the connections of the logins before it close.
    LoggedInAgain {
        /// The session.
        session_id: SessionId,
        /// Logins into it after the first, now.
        logins: i64,
    },
    /// A user may have come online or gone offline: replicas with a watcher look up the user's
    /// presence.
    Presence(UserId),
    /// A unit of work that was to change these ended with an unknown outcome: compare them with the
    /// store.
    Resync(Vec<Topic>),
}

/// What a hub subscribes to on the bus; an event is published on each topic that it may concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The followers of a chat.
    Chat(ChatId),
    /// The connections of a user, whatever chats they follow.
    User(UserId),
    /// The watchers of a user's presence.
    Presence(UserId),
    /// Every replica.
    Everyone,
}

impl Event {
    /// The topics that this event is published on. More than one if users join a chat, since they
    /// do not follow it yet.
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
