//! The frames that the server sends. One enum is the wire format, its schema and its documentation.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    Change, Chat, ChatEvent, ChatId, Epoch, FieldError, Member, Message, MessageId, Rev, SessionId,
    Timestamp, UserId,
};

/// The `id` that a client gives a frame, to match the answer with it: a string or an integer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum FrameId {
    /// An integer.
    Number(i64),
    /// Up to 64 characters.
    Text(String),
}

/// A frame from the server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// Authenticated.
    Ready {
        /// The `id` of the `authenticate` frame.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The session.
        session_id: SessionId,
        /// The account.
        user_id: UserId,
        /// How often to send `ping`.
        heartbeat_interval_ms: u64,
        /// The server's time.
        server_time: Timestamp,
        /// Names the history that all revisions belong to. It changes only when the database falls
        /// back to an earlier state. The client keeps it with its revisions and names it in `sync`.
        epoch: Epoch,
    },
    /// Answers `ping`.
    Pong {
        /// The `id` of the `ping`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
    },
    /// The frame's work is done, and durable.
    Ack {
        /// The `id` of the frame.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The message, as it is now, where the frame was about one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message: Option<Message>,
    },
    /// The frame was refused; nothing was done.
    Error {
        /// The `id` of the frame, as far as it could be read.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The same codes as in HTTP.
        code: String,
        /// One sentence.
        detail: String,
        /// The fields at fault.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        errors: Vec<FieldError>,
        /// When to try again.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        retry_after_ms: Option<u64>,
    },
    /// All missed events were sent; live events continue from these revisions.
    Synced {
        /// The `id` of the `sync`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The revision of each of the caller's chats.
        chats: BTreeMap<ChatId, Rev>,
    },
    /// The client is too far behind for a replay: reload the chat over HTTP.
    Reset {
        /// The chat.
        chat_id: ChatId,
        /// Its revision, from which live events continue.
        rev: Rev,
    },
    /// A message was sent.
    NewMessage {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The message.
        message: Message,
    },
    /// A message's text changed.
    MessageEdited {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The message as it is now.
        message: Message,
    },
    /// A message lost its text.
    MessageRemoved {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The message.
        message_id: MessageId,
    },
    /// A user joined.
    MemberJoined {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The new member.
        member: Member,
    },
    /// A member's role changed.
    MemberChanged {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The member as they are now.
        member: Member,
    },
    /// A member left or was removed.
    MemberLeft {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The former member.
        user_id: UserId,
    },
    /// Members of a large channel joined, left or changed their roles. Stands for all changes of
    /// the chat up to `rev` that this connection did not get as events: each of them concerned
    /// members only. The owner and the admins get the events instead, except for events that happen
    /// while their connection syncs.
    MemberCount {
        /// The channel.
        chat_id: ChatId,
        /// The last revision that this stands for.
        rev: Rev,
        /// How many members the channel has at that revision.
        member_count: i64,
    },
    /// The chat itself changed, such as its name.
    ChatChanged {
        /// The chat.
        chat_id: ChatId,
        /// The revision that this produced.
        rev: Rev,
        /// The chat, without the fields that differ between its members.
        chat: Chat,
    },
    /// A chat is new in the caller's list.
    ChatAdded {
        /// The chat as the caller sees it; live events continue from its `rev`.
        chat: Chat,
    },
    /// A chat is no longer in the caller's list. A self or private chat that the caller removed
    /// comes back with its next `new_message`, or with `chat_added` when the caller opens it again.
    ChatGone {
        /// The chat.
        chat_id: ChatId,
    },
    /// A read marker moved.
    Read {
        /// The chat.
        chat_id: ChatId,
        /// The member whose marker it is.
        user_id: UserId,
        /// Where it is now.
        message_id: MessageId,
    },
    /// A member is typing.
    Typing {
        /// The chat.
        chat_id: ChatId,
        /// The member who types.
        user_id: UserId,
    },
    /// Whether a watched user is online: at once when asked for, then with every change.
    Presence {
        /// The watched user.
        user_id: UserId,
        /// Whether they have a connection, or had one a few seconds ago.
        online: bool,
        /// When they were last online, to about a minute: now, while they are. Absent if they never
        /// were.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        last_seen_at: Option<Timestamp>,
    },
    /// The server is about to stop: reconnect after this time, then `sync`.
    Reconnect {
        /// The client's delay, random so that the clients of a replica do not all return at once.
        after_ms: u64,
    },
}

impl ServerFrame {
    /// The frame of a durable change; `None` for a change that reaches each user as a frame of its
    /// own.
    pub fn of_change(chat_id: ChatId, rev: Rev, change: Change) -> Option<Self> {
        Some(match change {
            Change::MessageSent(message) => Self::NewMessage { chat_id, rev, message },
            Change::MessageEdited(message) => Self::MessageEdited { chat_id, rev, message },
            Change::MessageRemoved(message) => {
                Self::MessageRemoved { chat_id, rev, message_id: message.id }
            }
            Change::MemberJoined(joined) => Self::MemberJoined { chat_id, rev, member: joined.0 },
            Change::MemberChanged(member) => Self::MemberChanged { chat_id, rev, member },
            Change::MemberLeft(user_id) => Self::MemberLeft { chat_id, rev, user_id },
            Change::Renamed(chat) => Self::ChatChanged { chat_id, rev, chat },
            Change::Created(_) | Change::Removed => return None,
        })
    }

    /// The frame's bytes: one JSON object, `type` first.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }
}

/// The frames of one event: one for the sender of its message, one for all other viewers.
#[derive(Clone, Debug)]
pub struct EncodedEvent {
    /// For all other viewers.
    pub for_all: Bytes,
    /// For the connections of this user, with the idempotency key.
    pub for_sender: Option<(UserId, Bytes)>,
}

impl EncodedEvent {
    /// Encodes an event once for all its viewers. `None` as [`ServerFrame::of_change`].
    pub fn new(event: ChatEvent) -> Option<Self> {
        let ChatEvent { chat_id, rev, change } = event;
        let keyed = match &change {
            Change::MessageSent(message) | Change::MessageEdited(message)
                if message.client_id.is_some() =>
            {
                Some(message.sender_id)
            }
            _ => None,
        };

        let mut frame = ServerFrame::of_change(chat_id, rev, change)?;
        let for_sender = keyed.map(|sender_id| (sender_id, frame.encode()));

        // Only the sender sees the idempotency key.
        if let ServerFrame::NewMessage { message, .. }
        | ServerFrame::MessageEdited { message, .. } = &mut frame
        {
            message.client_id = None;
        }
        Some(Self { for_all: frame.encode(), for_sender })
    }

    /// The bytes for one viewer.
    pub fn for_viewer(&self, user_id: UserId) -> &Bytes {
        match &self.for_sender {
            Some((sender_id, bytes)) if *sender_id == user_id => bytes,
            _ => &self.for_all,
        }
    }
}
