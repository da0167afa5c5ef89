//! What a record is made of. Everything is small and `Copy` where it can be: a run has millions of
//! them.

use serde::{Deserialize, Serialize};

use super::names::{Digest, Name};

/// The number of an operation in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u32);

impl OpId {
    /// An operation that the history had no room for.
    pub const DROPPED: Self = Self(u32::MAX);
}

/// A connection on which requests are in order: a device's number, and its connection's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// The device.
    pub device: u32,
    /// The connection of that device, from 1.
    pub connection: u32,
}

/// What was asked for. Texts are unique in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Kind {
    /// Send a message; `client_id` is [`Digest::NONE`] where there is none.
    Send { chat: Name, text: Digest, client_id: Digest },
    /// Change a message's text.
    Edit { chat: Name, message_id: u32, text: Digest },
    /// Remove a message.
    Remove { chat: Name, message_id: u32 },
    /// Add a member.
    Join { chat: Name, user: Name },
    /// Remove a member, or leave.
    Leave { chat: Name, user: Name },
    /// Make a chat; the answer says which.
    Create,
    /// Log in; the answer says which session.
    Login,
    /// End a session.
    Revoke { session: Name },
    /// Move the read marker.
    MarkRead { chat: Name, message_id: u32 },
    /// A page of history; 0 where a bound was not given.
    History { chat: Name, before: u32, after: u32, max: u32 },
    /// What changed after a revision.
    Changes { chat: Name, after_rev: u32 },
    /// One chat.
    Chat { chat: Name },
    /// The caller's chats: the whole first page.
    Chats,
    /// Anything else that needs a session.
    Other,
}

impl Kind {
    /// The chat that it is about.
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

    /// Whether it changes a chat's log.
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

/// What a message had become when it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// As it was sent: its `rev` is the one that sent it.
    #[default]
    Sent,
    /// With another text.
    Edited,
    /// Without a text.
    Removed,
}

/// A message as somebody saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its position.
    pub id: u32,
    /// The revision of its last change.
    pub rev: u32,
    /// Who sent it.
    pub sender: Name,
    /// Its text; none once removed.
    pub text: Digest,
    /// What had become of it.
    pub state: State,
}

/// A chat as one of its members saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatSeen {
    /// Which.
    pub chat: Name,
    /// Its revision.
    pub rev: u32,
    /// Its last message.
    pub last_message_id: u32,
    /// Messages after the read marker.
    pub unread_count: Option<u32>,
    /// The read marker.
    pub last_read_message_id: Option<u32>,
    /// Its members.
    pub member_count: u32,
    /// Who sent the last message; none where it has none.
    pub last_sender: Name,
}

/// What an answer held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Value {
    /// Nothing that matters.
    Done,
    /// A message.
    Message(Seen),
    /// A page of history.
    Messages(Box<[Seen]>),
    /// A page of changes, without its members.
    Changes { messages: Box<[Seen]>, rev: u32, complete: bool },
    /// One chat.
    Chat(ChatSeen),
    /// Chats.
    Chats(Box<[ChatSeen]>),
    /// A session.
    Session(Name),
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Outcome {
    /// Done.
    Ok(Value),
    /// Not done. The status is 0 for a refused frame.
    Refused { status: u16, code: Name },
    /// Done or not: nobody knows.
    Unknown,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Whose.
    pub user: Name,
    /// By which session.
    pub session: Name,
    /// The connection that carried it; none for HTTP.
    pub stream: Option<Stream>,
    /// What.
    pub kind: Kind,
    /// When it was sent, in microseconds since the start.
    pub invoked_us: u64,
    /// When its outcome was known; none if it never was.
    pub completed_us: Option<u64>,
    /// What became of it; none while it is under way.
    pub outcome: Option<Outcome>,
}

impl Op {
    /// The answer, if it was done.
    pub fn value(&self) -> Option<&Value> {
        if let Some(Outcome::Ok(value)) = &self.outcome { Some(value) } else { None }
    }

    /// The message answered, if it was done and was about one.
    pub fn message(&self) -> Option<&Seen> {
        if let Some(Value::Message(seen)) = self.value() { Some(seen) } else { None }
    }

    /// Whether the server may have done it.
    pub fn may_be_done(&self) -> bool {
        !matches!(self.outcome, Some(Outcome::Refused { .. }))
    }
}

/// What a device saw or did on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub enum Told {
    /// `ready`; [`Name::default`] where it names no epoch.
    Ready { epoch: Name },
    /// The device asked for `sync` and named these chats at these revisions.
    Sync(Box<[(Name, u32)]>),
    /// `synced`.
    Synced(Box<[(Name, u32)]>),
    /// `reset`.
    Reset { chat: Name, rev: u32 },
    /// After a `reset`, everything up to `rev` was loaded over HTTP.
    Loaded { chat: Name, rev: u32 },
    /// `new_message`. `rev` is the frame's, `seen.rev` the message's.
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
    /// `member_count`: stands for all revs up to this one that did not come, each of which changed
    /// a member.
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
    /// An answer, an error, or another frame.
    Other,
    /// Something that is no frame of the protocol.
    Garbage,
    /// The connection ended: the server's close code, 0 where it was cut or found dead.
    Closed { code: u16 },
    /// The device was told to stop.
    Stopped,
    /// The device stopped reading, or reads again.
    Stalled { reading: bool },
}

impl Told {
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

    /// Whether it is a frame from the server.
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

/// One line of a device's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in microseconds since the start.
    pub at_us: u64,
    /// On which connection of the device, from 1.
    pub connection: u32,
    /// What.
    pub told: Told,
}

/// Everything that one device saw, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Whose it is.
    pub user: Name,
    /// Its session.
    pub session: Name,
    /// What it saw.
    pub entries: Vec<Entry>,
}

/// A sample of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// The process.
    pub process: Name,
    /// When, in microseconds since the start.
    pub at_us: u64,
    /// Resident bytes.
    pub rss_bytes: u64,
}

/// A finished history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The words, by their numbers.
    pub names: Vec<Box<str>>,
    /// When it was taken, in microseconds since the start.
    pub ended_us: u64,
    /// What it had no room for.
    pub dropped: u64,
    /// Operations, in the order of their invocation.
    pub ops: Vec<Op>,
    /// Devices, by their numbers.
    pub devices: Vec<DeviceRecord>,
    /// Memory samples.
    pub memory: Vec<MemorySample>,
}

impl Record {
    /// The word of a number.
    pub fn word(&self, name: Name) -> &str {
        self.names.get(name.0 as usize).map_or("?", |word| word)
    }
}
