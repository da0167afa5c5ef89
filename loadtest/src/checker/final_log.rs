//! The state at the end of a run: the log, and each replica's view of it.

use serde::{Deserialize, Serialize};

use crate::history::{ChatSeen, Digest, Name, Seen};

/// A message of the final log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalMessage {
    /// The message in its last state.
    pub seen: Seen,
    /// The revision of the send; 0 if unknown.
    pub sent_rev: u32,
    /// Idempotency key; [`Digest::NONE`] if the message has none or it is unknown.
    pub client_id: Digest,
}

/// A current or former member of a chat in the final log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalMember {
    /// User id.
    pub user: Name,
    /// The revision of the last join; 0 if unknown.
    pub joined_rev: u32,
    /// The revision of the last change of this member; 0 if unknown.
    pub rev: u32,
    /// The revision of the leave, 0 if unknown; absent for a current member.
    pub left_rev: Option<u32>,
    /// The read marker: a message id.
    pub last_read_message_id: u32,
}

/// A chat of the final log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalChat {
    /// Chat id.
    pub chat: Name,
    /// The chat's revision.
    pub rev: u32,
    /// The revision of the last rename; 0 if unknown.
    pub renamed_rev: u32,
    /// Id of the last message, as the chat itself counts it.
    pub last_message_id: u32,
    /// Number of members, as the chat itself counts them.
    pub member_count: u32,
    /// All messages, in any order.
    pub messages: Vec<FinalMessage>,
    /// All current members, and the known former members.
    pub members: Vec<FinalMember>,
}

/// A replica's view of one chat for one user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalView {
    /// Index of the replica.
    pub replica: usize,
    /// User id of the reader.
    pub user: Name,
    /// The chat in the user's list of chats.
    pub chat: ChatSeen,
    /// The complete history of the chat, by id; absent if it was not read.
    pub messages: Option<Vec<Seen>>,
}

/// The state at the end of a run. Names are those of the run's [`crate::history::History`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalLog {
    /// Every chat of the run.
    pub chats: Vec<FinalChat>,
    /// The replicas' views of these chats.
    pub views: Vec<FinalView>,
}
