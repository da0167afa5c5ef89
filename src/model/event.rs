//! Events, which the service publishes on the bus to the hubs. `wire` defines their format between
//! replicas, so these types implement no serialisation.

use super::{Chat, ChatId, Member, Message, MessageId, Rev, SessionId, UserId};

/// One durable change of a chat.
#[derive(Clone, Debug)]
pub struct ChatEvent {
    /// The chat that changed.
    pub chat_id: ChatId,
    /// The revision that the change produced.
    pub rev: Rev,
    /// The change itself.
    pub change: Change,
}

/// The kinds of durable change.
#[derive(Clone, Debug)]
pub enum Change {
    /// The chat was created. Holds each first member's view of the chat.
    Created(Vec<(UserId, Chat)>),
    /// A message was sent.
    MessageSent(Message),
    /// A message's text changed.
    MessageEdited(Message),
    /// A message was removed. It keeps its position, without a text.
    MessageRemoved(Message),
    /// A user joined. Holds the user's view of the chat, unless the change was read from the store.
    MemberJoined(Box<(Member, Option<Chat>)>),
    /// A member's role changed.
    MemberChanged(Member),
    /// A member left or was removed.
    MemberLeft(UserId),
    /// The chat's name changed.
    Renamed(Chat),
    /// The chat was removed for all members.
    Removed,
}

impl Change {
    /// The message that changed, if the change concerns a message.
    pub fn message_id(&self) -> Option<MessageId> {
        match self {
            Self::MessageSent(message)
            | Self::MessageEdited(message)
            | Self::MessageRemoved(message) => Some(message.id),
            _ => None,
        }
    }

    /// The change by which a client learns of the present state of a message. For a client that
    /// does not have the message (`is_known` is false), the message is new, even if it changed
    /// since.
    pub fn of_message(message: Message, is_known: bool) -> Self {
        if !is_known {
            Self::MessageSent(message)
        } else if message.removed_at.is_some() {
            Self::MessageRemoved(message)
        } else {
            Self::MessageEdited(message)
        }
    }

    /// The member who joined, left or changed roles by this change.
    pub fn member(&self) -> Option<UserId> {
        match self {
            Self::MemberJoined(joined) => Some(joined.0.user.id),
            Self::MemberChanged(member) => Some(member.user.id),
            Self::MemberLeft(user_id) => Some(*user_id),
            _ => None,
        }
    }

    /// The users who enter the chat by this change.
    pub fn joiners(&self) -> impl Iterator<Item = UserId> {
        let created: &[(UserId, Chat)] = if let Self::Created(views) = self { views } else { &[] };
        let joined =
            if let Self::MemberJoined(joined) = self { Some(joined.0.user.id) } else { None };

        created.iter().map(|(user_id, _)| *user_id).chain(joined)
    }
}

/// An event on the bus.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all events are of the large variant")]
pub enum Event {
    /// A durable change. The bus may lose it: the hub then finds a gap in the chat's `rev` and
    /// reads the change from the store.
    Chat(ChatEvent),
    /// A member's read marker moved.
    Read {
        /// The chat of the read marker.
        chat_id: ChatId,
        /// The member whose read marker moved.
        user_id: UserId,
        /// The position of the last message that the member read.
        message_id: MessageId,
        /// Whether the other members get the event. In channels they do not.
        to_all: bool,
    },
    /// A member is typing. The bus may lose it.
    Typing {
        /// The chat in which the member is typing.
        chat_id: ChatId,
        /// The member who is typing.
        user_id: UserId,
    },
    /// A self or private chat was removed from the user's list.
    ChatGone {
        /// The chat that was removed from the list.
        chat_id: ChatId,
        /// The user whose list changed.
        user_id: UserId,
    },
    /// A user restored a self or private chat to their list. The chat may have changed meanwhile.
    ChatBack {
        /// The restored chat.
        chat_id: ChatId,
        /// The user whose list changed.
        user_id: UserId,
    },
    /// These sessions ended: the hubs close their connections.
    SessionsEnded(Vec<SessionId>),
    /// A user logged in to a live session: the hubs close the connections of the earlier logins.
    LoggedInAgain {
        /// The session.
        session_id: SessionId,
        /// The number of logins into the session after the first.
        logins: i64,
    },
    /// A user may have come online or gone offline: each replica with a watcher of the user reads
    /// the user's presence.
    Presence(UserId),
    /// A unit of work on these topics ended with an unknown outcome: the hubs compare the topics
    /// with the store.
    Resync(Vec<Topic>),
}

/// A subject to which a hub subscribes on the bus. An event is published on each topic that it may
/// concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The subscribers of a chat.
    Chat(ChatId),
    /// The connections of a user, whichever chats they subscribe to.
    User(UserId),
    /// The watchers of a user's presence.
    Presence(UserId),
    /// Every replica.
    Everyone,
}

impl Event {
    /// The topics on which this event is published. A join also goes to the topic of the user who
    /// joins, since that user's connections do not subscribe to the chat yet.
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
