//! The protocol's JSON as a tolerant client reads it: unknown fields are ignored, and fields that
//! may be absent are optional.

use std::collections::HashMap;

use serde::Deserialize;

/// A message in its latest state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Chat id.
    pub chat_id: String,
    /// Position in the chat, from 1.
    pub id: u32,
    /// The chat's revision that last changed the message.
    pub rev: u32,
    /// User id of the sender.
    pub sender_id: String,
    /// Text; absent after a removal.
    pub text: Option<String>,
    /// The sender's idempotency key; only the sender receives it.
    pub client_id: Option<String>,
    /// Time of the last edit; absent if the message was never edited.
    pub edited_at: Option<String>,
    /// Time of the removal; absent if the message was not removed.
    pub removed_at: Option<String>,
}

/// A preview of the newest message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LastMessage {
    /// Position in the chat, from 1.
    pub id: u32,
    /// User id of the sender.
    pub sender_id: String,
    /// The start of the text; absent after a removal.
    pub text: Option<String>,
}

/// A chat as one of its members sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Chat {
    /// Chat id.
    pub id: String,
    /// `self`, `private`, `group` or `channel`.
    pub kind: String,
    /// The chat's revision when the server read it.
    pub rev: u32,
    /// Position of the last message; 0 in an empty chat.
    pub last_message_id: u32,
    /// Preview of the last message; absent in an empty chat.
    pub last_message: Option<LastMessage>,
    /// Number of messages after the caller's read marker.
    pub unread_count: Option<u32>,
    /// The caller's read marker: a message id.
    pub last_read_message_id: Option<u32>,
    /// Number of members.
    pub member_count: u32,
}

/// The short form of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserBrief {
    /// User id.
    pub id: String,
    /// Login name.
    pub login: String,
}

/// A member of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// The user.
    pub user: UserBrief,
    /// `owner`, `admin` or `member`.
    pub role: String,
    /// The member's read marker: a message id.
    pub last_read_message_id: u32,
}

/// A page of a chat's history.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MessageList {
    /// Messages, ascending by id.
    pub messages: Vec<Message>,
}

/// A page of the caller's chats.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ChatList {
    /// Chats, latest activity first.
    pub chats: Vec<Chat>,
    /// Start of the next page; absent on the last page.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of a chat's members.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MemberList {
    /// Members, ascending by user id.
    pub members: Vec<Member>,
    /// Start of the next page; absent on the last page.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of the changes of a chat after a revision.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChangeList {
    /// Changed messages, oldest change first.
    pub messages: Vec<Message>,
    /// Members that joined or changed.
    pub members: Vec<Member>,
    /// User ids of the members that left.
    pub removed_member_ids: Vec<String>,
    /// The revision up to which this page is complete.
    pub rev: u32,
    /// Whether this is the last page.
    pub complete: bool,
}

/// A login session of a user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Session id.
    pub id: String,
}

/// The answer to a login: a session and its token.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// The new session.
    pub session: Session,
    /// The user who logged in.
    pub user: UserBrief,
    /// Token for `Authorization: Bearer`.
    pub token: String,
}

/// The session that a token belongs to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CurrentSession {
    /// The session of the request's token.
    pub session: Session,
    /// The session's user.
    pub user: UserBrief,
}

/// An error's body (RFC 9457).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// Stable error code.
    pub code: String,
    /// Explanation in one sentence.
    pub detail: String,
}

/// The id that a client gives a frame; this client uses integers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FrameId {
    /// An id that is an integer.
    Number(u64),
    /// An id that is a string.
    Text(String),
}

/// The kinds of frame that a server sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub enum FrameKind {
    Ready,
    Pong,
    Ack,
    Error,
    Synced,
    Reset,
    NewMessage,
    MessageEdited,
    MessageRemoved,
    Reaction,
    MemberJoined,
    MemberChanged,
    MemberLeft,
    MemberCount,
    ChatChanged,
    ChatAdded,
    ChatGone,
    Read,
    Typing,
    Presence,
    Reconnect,
    /// A kind of a later protocol version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A frame from the server. One flat struct holds all kinds, because serde reads it twice as fast
/// as a tagged enum.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// Kind of frame.
    #[serde(rename = "type")]
    pub kind: FrameKind,
    /// Id of the client's frame that this one answers.
    pub id: Option<FrameId>,
    /// Chat id.
    pub chat_id: Option<String>,
    /// The chat's revision after the event.
    pub rev: Option<u32>,
    /// The message of a message event or an `ack`.
    pub message: Option<Message>,
    /// Message id (`message_removed`, `read`).
    pub message_id: Option<u32>,
    /// The member of a member event.
    pub member: Option<Member>,
    /// User id (`member_left`, `read`, `typing`, `presence`).
    pub user_id: Option<String>,
    /// Session id (`ready`).
    pub session_id: Option<String>,
    /// The log's epoch, to which all revisions belong (`ready`).
    pub epoch: Option<String>,
    /// Interval between `ping` frames, in milliseconds (`ready`).
    pub heartbeat_interval_ms: Option<u64>,
    /// Revisions by chat id (`synced`).
    pub chats: Option<HashMap<String, u32>>,
    /// The chat (`chat_added`).
    pub chat: Option<Chat>,
    /// Whether the user is online (`presence`).
    pub online: Option<bool>,
    /// Delay before the reconnect, in milliseconds (`reconnect`).
    pub after_ms: Option<u64>,
    /// Stable error code (`error`).
    pub code: Option<String>,
    /// Delay before a retry, in milliseconds (`error`).
    pub retry_after_ms: Option<u64>,
}

impl Frame {
    /// The id of the client's frame that this one answers, if it is an integer.
    pub fn answers(&self) -> Option<u64> {
        match &self.id {
            Some(FrameId::Number(id)) => Some(*id),
            Some(FrameId::Text(id)) => id.parse().ok(),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_a_later_version_is_read_as_unknown() {
        let frame: Frame = serde_json::from_str(r#"{"type":"dance","tempo":3}"#).unwrap();
        assert_eq!(frame.kind, FrameKind::Unknown);
        let frame: Frame =
            serde_json::from_str(r#"{"type":"ack","id":7,"message":{"id":3,"rev":4,"new":{}}}"#)
                .unwrap();
        assert_eq!(
            (frame.kind, frame.answers(), frame.message.unwrap().id),
            (FrameKind::Ack, Some(7), 3)
        );
    }
}
