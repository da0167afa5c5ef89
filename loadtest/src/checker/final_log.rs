//! What is there at the end: the log by the database, and what each replica says of it.

use serde::{Deserialize, Serialize};

use crate::history::{ChatSeen, Digest, Name, Seen};

/// A message at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalMessage {
    /// The message.
    pub seen: Seen,
    /// The revision that sent it; 0 if unknown.
    pub sent_rev: u32,
    /// Its key; none if it has none, or if it is unknown.
    pub client_id: Digest,
}

/// A member at the end, or somebody who left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalMember {
    /// Who.
    pub user: Name,
    /// The revision of the last join; 0 if unknown.
    pub joined_rev: u32,
    /// The revision of the last change of this member; 0 if unknown.
    pub rev: u32,
    /// Absent for a member; else the revision at which they left, 0 if unknown.
    pub left_rev: Option<u32>,
    /// The read marker.
    pub last_read_message_id: u32,
}

/// A chat at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalChat {
    /// Which.
    pub chat: Name,
    /// Its revision.
    pub rev: u32,
    /// The revision that last renamed it; 0 if unknown.
    pub renamed_rev: u32,
    /// Position of the last message, as the chat itself says.
    pub last_message_id: u32,
    /// Members, as the chat itself says.
    pub member_count: u32,
    /// All messages, in any order.
    pub messages: Vec<FinalMessage>,
    /// All members, and those who left as far as they are known.
    pub members: Vec<FinalMember>,
}

/// What a replica tells one user of one chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalView {
    /// The replica's number.
    pub replica: usize,
    /// To whom.
    pub user: Name,
    /// The chat as in the user's list.
    pub chat: ChatSeen,
    /// Its whole history, by id; absent if it was not read.
    pub messages: Option<Vec<Seen>>,
}

/// Everything at the end. Names are those of the run's [`crate::history::History`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalLog {
    /// Every chat of the run.
    pub chats: Vec<FinalChat>,
    /// What replicas say.
    pub views: Vec<FinalView>,
}
