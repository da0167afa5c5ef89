//! The entries of a record. They are small, and `Copy` where possible, because a run has millions
//! of them.

use serde::{Deserialize, Serialize};

use super::names::{Digest, Name};

/// The index of an operation in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u32);

impl OpId {
    /// An operation that a full history dropped.
    pub const DROPPED: Self = Self(u32::MAX);
}

/// A connection of a device. Requests on one connection are in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// The device's index in the record.
    pub device: u32,
    /// The number of the connection on that device, from 1.
    pub connection: u32,
}

/// The request of an operation. Texts are unique in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Kind {
    /// Send a message; `client_id` is [`Digest::NONE`] if the request has none.
    Send { chat: Name, text: Digest, client_id: Digest },
    /// Change a message's text.
    Edit { chat: Name, message_id: u32, text: Digest },
    /// Remove a message.
    Remove { chat: Name, message_id: u32 },
    /// Add a member.
    Join { chat: Name, user: Name },
    /// Remove a member, or leave.
    Leave { chat: Name, user: Name },
    /// Create a chat; the answer holds its id.
    Create,
    /// Log in; the answer holds the session id.
    Login,
    /// End a session.
    Revoke { session: Name },
    /// Move the read marker.
    MarkRead { chat: Name, message_id: u32 },
    /// Read a page of history. A bound of 0 was not given; `after: u32::MAX` stands for `after=0`.
    History { chat: Name, before: u32, after: u32, max: u32 },
    /// Read a page of the changes after a revision.
    Changes { chat: Name, after_rev: u32 },
    /// Read one chat.
    Chat { chat: Name },
    /// Read the first page of the user's chats.
    Chats,
    /// Any other request that needs a session.
    Other,
}

impl Kind {
    /// The chat that the request concerns, if it concerns one.
    pub fn chat(&self) -> Option<Name> {
        match self {
            Self::Send { chat, .. }
            | Self::Edit { chat, .. }
            | Self::Remove { chat, .. }
            | Self::Join { chat, .. }
            | Self::Leave { chat, .. }
            | Self::MarkRead { chat, .. }
            | Self::History { chat, .. }
            | Self::Changes { chat, .. }
            | Self::Chat { chat } => Some(*chat),
            Self::Create | Self::Login | Self::Revoke { .. } | Self::Chats | Self::Other => None,
        }
    }

    /// Whether the request changes a chat's log.
    pub fn changes_log(&self) -> bool {
        matches!(
            self,
            Self::Send { .. }
                | Self::Edit { .. }
                | Self::Remove { .. }
                | Self::Join { .. }
                | Self::Leave { .. }
        )
    }
}

/// The state of a message when it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Unchanged since it was sent: its `rev` is the revision of the send.
    #[default]
    Sent,
    /// Its text was edited.
    Edited,
    /// It was removed and has no text.
    Removed,
}

/// A message as a read or a frame showed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Position in the chat, from 1.
    pub id: u32,
    /// The revision of its last change.
    pub rev: u32,
    /// User id of the sender.
    pub sender: Name,
    /// Text; [`Digest::NONE`] after a removal.
    pub text: Digest,
    /// Whether it was edited or removed.
    pub state: State,
}

/// A chat as a read or a frame showed it to a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatSeen {
    /// Chat id.
    pub chat: Name,
    /// The chat's revision.
    pub rev: u32,
    /// Id of the last message; 0 in an empty chat.
    pub last_message_id: u32,
    /// Number of messages after the member's read marker.
    pub unread_count: Option<u32>,
    /// The member's read marker: a message id.
    pub last_read_message_id: Option<u32>,
    /// Number of members.
    pub member_count: u32,
    /// User id of the last message's sender; [`Name::NONE`] in an empty chat.
    pub last_sender: Name,
}

/// The content of a successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Value {
    /// Nothing that the checker needs.
    Done,
    /// The message that the request wrote.
    Message(Seen),
    /// A page of history.
    Messages(Box<[Seen]>),
    /// A page of changes, without the members in it.
    Changes { messages: Box<[Seen]>, rev: u32, complete: bool },
    /// One chat.
    Chat(ChatSeen),
    /// A page of the user's chats.
    Chats(Box<[ChatSeen]>),
    /// The id of a new session.
    Session(Name),
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Outcome {
    /// The server did it.
    Ok(Value),
    /// The server refused it. `status` is 0 for a refused frame.
    Refused { status: u16, code: Name },
    /// No answer: the server may have done it or not.
    Unknown,
}

/// A request and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// User id of the caller.
    pub user: Name,
    /// The caller's session.
    pub session: Name,
    /// The connection that carried the request; `None` for HTTP.
    pub stream: Option<Stream>,
    /// The request.
    pub kind: Kind,
    /// Time of the request, in microseconds since the start.
    pub invoked_us: u64,
    /// Time of the outcome, in microseconds since the start; `None` while there is no outcome.
    pub completed_us: Option<u64>,
    /// The outcome; `None` while the request is in progress.
    pub outcome: Option<Outcome>,
}

impl Op {
    /// The answer, if the operation succeeded.
    pub fn value(&self) -> Option<&Value> {
        if let Some(Outcome::Ok(value)) = &self.outcome { Some(value) } else { None }
    }

    /// The message in the answer, if the operation succeeded and returned one.
    pub fn message(&self) -> Option<&Seen> {
        if let Some(Value::Message(seen)) = self.value() { Some(seen) } else { None }
    }

    /// Whether the server may have done it: it did not refuse.
    pub fn may_be_done(&self) -> bool {
        !matches!(self.outcome, Some(Outcome::Refused { .. }))
    }
}

/// An event of a device: a frame that it received, or an action of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum DeviceEvent {
    /// `ready`; `epoch` is [`Name::NONE`] if the frame names none.
    Ready { epoch: Name },
    /// The device sent `sync` with these chats and revisions.
    Sync(Box<[(Name, u32)]>),
    /// `synced`.
    Synced(Box<[(Name, u32)]>),
    /// `reset`.
    Reset { chat: Name, rev: u32 },
    /// After a `reset`, the device loaded every change up to `rev` over HTTP.
    Loaded { chat: Name, rev: u32 },
    /// `new_message`. `rev` is the frame's revision, `seen.rev` the message's.
    New { chat: Name, rev: u32, seen: Seen },
    /// `message_edited`.
    Edited { chat: Name, rev: u32, seen: Seen },
    /// `message_removed`.
    Removed { chat: Name, rev: u32, message_id: u32 },
    /// `member_joined`.
    Joined { chat: Name, rev: u32, user: Name },
    /// `member_changed`.
    Changed { chat: Name, rev: u32, user: Name },
    /// `member_left`.
    Left { chat: Name, rev: u32, user: Name },
    /// `member_count`. It replaces all missing revs up to this one, each of which changed a member.
    Counted { chat: Name, rev: u32 },
    /// `chat_changed`.
    Renamed { chat: Name, rev: u32 },
    /// `chat_added`.
    Added { chat: Name, rev: u32, last_message_id: u32 },
    /// `chat_gone`.
    Gone { chat: Name },
    /// `read`.
    Read { chat: Name, user: Name, message_id: u32 },
    /// `typing`.
    Typing { chat: Name, user: Name },
    /// `presence`.
    Presence { user: Name, online: bool },
    /// An answer, an error, or a frame of another kind.
    Other,
    /// Input that is not a valid frame of the protocol.
    Garbage,
    /// The connection ended with this close code; 0 if it broke, timed out or was cut.
    Closed { code: u16 },
    /// The run stopped the device.
    Stopped,
    /// The device stopped or resumed reading.
    Stalled { reading: bool },
}

impl DeviceEvent {
    /// The chat and revision of a durable event.
    pub fn event(&self) -> Option<(Name, u32)> {
        match self {
            Self::New { chat, rev, .. }
            | Self::Edited { chat, rev, .. }
            | Self::Removed { chat, rev, .. }
            | Self::Joined { chat, rev, .. }
            | Self::Changed { chat, rev, .. }
            | Self::Left { chat, rev, .. }
            | Self::Counted { chat, rev }
            | Self::Renamed { chat, rev } => Some((*chat, *rev)),
            _ => None,
        }
    }

    /// Whether this is a frame from the server.
    pub fn is_frame(&self) -> bool {
        !matches!(
            self,
            Self::Sync(_)
                | Self::Loaded { .. }
                | Self::Closed { .. }
                | Self::Stopped
                | Self::Stalled { .. }
        )
    }
}

/// One entry of a device's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the event, in microseconds since the start.
    pub at_us: u64,
    /// The number of the device's connection, from 1.
    pub connection: u32,
    /// The event.
    pub told: DeviceEvent,
}

/// The log of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRecord {
    /// User id of the device's user.
    pub user: Name,
    /// The device's session.
    pub session: Name,
    /// Events, in the order in which they happened.
    pub entries: Vec<Entry>,
}

/// A sample of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Name of the process.
    pub process: Name,
    /// Time of the sample, in microseconds since the start.
    pub at_us: u64,
    /// Resident set size, in bytes.
    pub rss_bytes: u64,
}

/// A finished history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The strings of all interned names, by index.
    pub names: Vec<Box<str>>,
    /// Time at which the record was taken, in microseconds since the start.
    pub ended_us: u64,
    /// Number of operations and frames that the full history dropped.
    pub dropped: u64,
    /// Operations, in the order of their invocation.
    pub ops: Vec<Op>,
    /// Devices, by index.
    pub devices: Vec<DeviceRecord>,
    /// Memory samples, in the order in which they were taken.
    pub memory: Vec<MemorySample>,
}

impl Record {
    /// Returns the string of an interned name; `?` if the name is unknown.
    pub fn word(&self, name: Name) -> &str {
        self.names.get(name.0 as usize).map_or("?", |word| word)
    }
}
