//! The protocol's JSON as a tolerant client reads it: what is unknown is passed over, what may be
//! absent is optional.

use std::collections::HashMap;

use serde::Deserialize;

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Its chat.
    pub chat_id: String,
    /// Its position in the chat, from 1.
    pub id: u32,
    /// The chat's revision that last changed it.
    pub rev: u32,
    /// Who sent it.
    pub sender_id: String,
    /// Its text; absent once removed.
    pub text: Option<String>,
    /// The sender's idempotency key; its sender alone sees it.
    pub client_id: Option<String>,
    /// When its text was last changed.
    pub edited_at: Option<String>,
    /// When it was removed.
    pub removed_at: Option<String>,
}

/// The newest message of a chat, in few words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LastMessage {
    /// Its position.
    pub id: u32,
    /// Who sent it.
    pub sender_id: String,
    /// Its beginning; absent once removed.
    pub text: Option<String>,
}

/// A chat as one of its members sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Chat {
    /// Its id.
    pub id: String,
    /// `self`, `private`, `group` or `channel`.
    pub kind: String,
    /// Its revision at the moment of this view.
    pub rev: u32,
    /// Position of the last message; 0 in an empty chat.
    pub last_message_id: u32,
    /// The last message.
    pub last_message: Option<LastMessage>,
    /// Messages after the caller's read marker.
    pub unread_count: Option<u32>,
    /// The caller's read marker.
    pub last_read_message_id: Option<u32>,
    /// How many members it has.
    pub member_count: u32,
}

/// A user in few words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserBrief {
    /// Its id.
    pub id: String,
    /// What it logs in with.
    pub login: String,
}

/// A member of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Who.
    pub user: UserBrief,
    /// `owner`, `admin` or `member`.
    pub role: String,
    /// How far they have read.
    pub last_read_message_id: u32,
}

/// A page of a chat's history.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MessageList {
    /// Ascending by id.
    pub messages: Vec<Message>,
}

/// A page of the caller's chats.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ChatList {
    /// Last activity first.
    pub chats: Vec<Chat>,
    /// Where the next page begins.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of a chat's members.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MemberList {
    /// By id.
    pub members: Vec<Member>,
    /// Where the next page begins.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// What changed in a chat after a revision.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChangeList {
    /// Oldest change first.
    pub messages: Vec<Message>,
    /// Who joined or changed.
    pub members: Vec<Member>,
    /// Who left.
    pub removed_member_ids: Vec<String>,
    /// How far this goes.
    pub rev: u32,
    /// Whether that is everything.
    pub complete: bool,
}

/// A session.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Its id.
    pub id: String,
}

/// A session and its tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// The session.
    pub session: Session,
    /// Who logged in.
    pub user: UserBrief,
    /// For `Authorization: Bearer`.
    pub token: String,
}

/// The session of a token.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CurrentSession {
    /// The session.
    pub session: Session,
    /// Its user.
    pub user: UserBrief,
}

/// An error's body (RFC 9457).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The stable reason.
    pub code: String,
    /// One sentence.
    pub detail: String,
}

/// What a client calls a frame; this client uses integers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FrameId {
    /// An integer.
    Number(u64),
    /// Anything else.
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
    /// One of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A frame from the server: one flat struct for all kinds, since that is read twice as fast as a
/// tagged enum.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: FrameKind,
    /// Of the frame that it answers.
    pub id: Option<FrameId>,
    /// The chat that it is about.
    pub chat_id: Option<String>,
    /// The revision that it tells.
    pub rev: Option<u32>,
    /// The message that it carries.
    pub message: Option<Message>,
    /// The message that it names.
    pub message_id: Option<u32>,
    /// The member that it carries.
    pub member: Option<Member>,
    /// The user that it names.
    pub user_id: Option<String>,
    /// The session (`ready`).
    pub session_id: Option<String>,
    /// The history that all revisions belong to (`ready`).
    pub epoch: Option<String>,
    /// How often to send `ping`, in milliseconds (`ready`).
    pub heartbeat_interval_ms: Option<u64>,
    /// Revisions by chat (`synced`).
    pub chats: Option<HashMap<String, u32>>,
    /// The chat that it carries.
    pub chat: Option<Chat>,
    /// Whether the user is online (`presence`).
    pub online: Option<bool>,
    /// When to come back, in milliseconds (`reconnect`).
    pub after_ms: Option<u64>,
    /// Why it was refused (`error`).
    pub code: Option<String>,
    /// When to try again, in milliseconds (`error`).
    pub retry_after_ms: Option<u64>,
}

impl Frame {
    /// The number of the frame that this one answers.
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
