//! The frames that the server sends. One enum defines their format, schema and documentation.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    Change, Chat, ChatEvent, ChatId, Epoch, FieldError, Member, Message, MessageId, Rev, SessionId,
    Timestamp, UserId,
};

/// The `id` that a client gives a frame to recognise the answer: a string or an integer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum FrameId {
    /// An integer.
    Number(i64),
    /// A string of up to 64 bytes.
    Text(String),
}

/// A frame from the server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The connection is authenticated.
    Ready {
        /// The `id` of the `authenticate` frame.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The session that the connection belongs to.
        session_id: SessionId,
        /// The account of the authenticated user.
        user_id: UserId,
        /// How often the client must send `ping`. A connection that is silent for twice as long is
        /// closed.
        heartbeat_interval_ms: u64,
        /// The server's present time.
        server_time: Timestamp,
        /// The epoch that all revisions belong to. It changes only when the database falls back to
        /// an earlier state. The client stores it with its revisions and sends it in `sync`.
        epoch: Epoch,
    },
    /// Answers `ping`.
    Pong {
        /// The `id` of the `ping`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
    },
    /// The frame succeeded, and its changes are durable.
    Ack {
        /// The `id` of the frame.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The present state of the message, if the frame concerned a message.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message: Option<Message>,
    },
    /// The frame was refused or failed.
    Error {
        /// The `id` of the frame. Absent if it could not be read.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The stable name of the error, the same as in HTTP.
        code: String,
        /// One sentence about this occurrence.
        detail: String,
        /// The invalid fields.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        errors: Vec<FieldError>,
        /// How long to wait before the next try, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        retry_after_ms: Option<u64>,
    },
    /// All missed events were sent. Live events continue from these revisions.
    Synced {
        /// The `id` of the `sync`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<FrameId>,
        /// The revision of each of the user's chats.
        chats: BTreeMap<ChatId, Rev>,
    },
    /// The client is too far behind for a replay, or has another epoch: reload the chat over HTTP.
    Reset {
        /// The chat to reload.
        chat_id: ChatId,
        /// The revision of the chat from which live events continue.
        rev: Rev,
    },
    /// A message was sent.
    NewMessage {
        /// The chat that contains the message.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The new message.
        message: Message,
    },
    /// A message's text changed.
    MessageEdited {
        /// The chat that contains the message.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The message with its new text.
        message: Message,
    },
    /// A message was removed: it has no text any longer.
    MessageRemoved {
        /// The chat that contains the message.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The position of the removed message, which no other message takes.
        message_id: MessageId,
    },
    /// A user joined the chat.
    MemberJoined {
        /// The chat that the user joined.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The new member.
        member: Member,
    },
    /// A member's role changed.
    MemberChanged {
        /// The chat of the member.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The member with the new role.
        member: Member,
    },
    /// A member left or was removed.
    MemberLeft {
        /// The chat that the user left.
        chat_id: ChatId,
        /// The revision of the chat after this change.
        rev: Rev,
        /// The former member.
        user_id: UserId,
    },
    /// Members of a large channel joined, left or changed their roles. Stands for all changes of
    /// the chat up to `rev` that this connection did not get as events: each of them concerned
    /// members only. The owner and the admins get the events instead, except for events that happen
    /// while their connection syncs.
    MemberCount {
        /// The channel whose members changed.
        chat_id: ChatId,
        /// The last revision that this frame stands for.
        rev: Rev,
        /// The number of members at that revision.
        member_count: i64,
    },
    /// A property of the chat changed, such as its name.
    ChatChanged {
        /// The chat that changed.
        chat_id: ChatId,
        /// The revision of the chat after this change.
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
        /// The chat that left the list.
        chat_id: ChatId,
    },
    /// A read marker moved.
    Read {
        /// The chat of the read marker.
        chat_id: ChatId,
        /// The member whose read marker moved.
        user_id: UserId,
        /// The position of the last message that the member read.
        message_id: MessageId,
    },
    /// A member is typing.
    Typing {
        /// The chat in which the member is typing.
        chat_id: ChatId,
        /// The member who is typing.
        user_id: UserId,
    },
    /// The presence of a watched user: once when the watch begins, then with every change.
    Presence {
        /// The watched user.
        user_id: UserId,
        /// Whether the user has a connection, or had one a few seconds ago.
        online: bool,
        /// When the user was last online, to about a minute; while the user is online, the present
        /// time. Absent if the user was never online.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        last_seen_at: Option<Timestamp>,
    },
    /// The server is about to close the connection: reconnect after this time, then `sync`.
    Reconnect {
        /// How long the client waits, in milliseconds. Random, so that the clients of a replica do
        /// not reconnect all at once.
        after_ms: u64,
    },
}

impl ServerFrame {
    /// The frame of a durable change. `None` for the creation and the removal of a chat, of which
    /// each user gets a `chat_added` or `chat_gone` instead.
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

    /// Encodes the frame as one JSON object, `type` first.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }
}

/// The encoded frames of one event: one for the sender of its message, one for all other users.
#[derive(Clone, Debug)]
pub struct EncodedEvent {
    /// The frame for all other users.
    pub for_all: Bytes,
    /// The sender, and the frame for the sender's connections, with the idempotency key.
    pub for_sender: Option<(UserId, Bytes)>,
}

impl EncodedEvent {
    /// Encodes an event once for all users. `None` as in [`ServerFrame::of_change`].
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

    /// The frame for one user.
    pub fn for_viewer(&self, user_id: UserId) -> &Bytes {
        match &self.for_sender {
            Some((sender_id, bytes)) if *sender_id == user_id => bytes,
            _ => &self.for_all,
        }
    }
}
