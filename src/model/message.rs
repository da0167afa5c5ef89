//! Messages.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{ChatId, MessageId, Rev, Timestamp, UserId, words};

words! {
    /// What a message carries.
    MessageKind {
        /// Text that everybody in the chat, and the server, can read.
        Text = "text",
    }
}

/// A message. Once removed, it keeps its place but has no text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Its chat.
    pub chat_id: ChatId,
    /// Its position in the chat.
    pub id: MessageId,
    /// The chat's revision that last changed it.
    pub rev: Rev,
    /// Who sent it.
    pub sender_id: UserId,
    /// What it carries.
    pub kind: MessageKind,
    /// 1 to 4096 characters. Absent once removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reply_to: Option<MessageId>,
    /// The sender's idempotency key, shown to the sender only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client_id: Option<String>,
    /// When it was accepted.
    pub sent_at: Timestamp,
    /// When its text was last changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub edited_at: Option<Timestamp>,
    /// When it was removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub removed_at: Option<Timestamp>,
}

impl Message {
    /// The message as `viewer` may see it: the idempotency key is the sender's own business.
    #[must_use]
    pub fn for_viewer(mut self, viewer: UserId) -> Self {
        if self.sender_id != viewer {
            self.client_id = None;
        }
        self
    }
}

/// A message that somebody asks to send, checked but not yet placed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Where to.
    pub chat_id: ChatId,
    /// Who sends.
    pub sender_id: UserId,
    /// Checked and trimmed.
    pub text: String,
    /// The message it answers.
    pub reply_to: Option<MessageId>,
    /// The idempotency key.
    pub client_id: Option<String>,
}

impl Draft {
    /// Tells two bodies under one `client_id` apart, even after the message was edited or removed:
    /// 128 bits of SHA-256.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        hash.update(self.reply_to.map_or(0, |id| id.0).to_le_bytes());
        hash.update(self.text.as_bytes());
        hash.finalize()[..16].to_vec()
    }
}

/// What became of a [`Draft`].
#[derive(Clone, Debug)]
pub enum Sent {
    /// It has its place now.
    New(Message),
    /// The same key had placed it before; this is that message as it is today.
    Repeated(Message),
}

impl Sent {
    /// The message, however it got there.
    pub fn into_message(self) -> Message {
        match self {
            Self::New(message) | Self::Repeated(message) => message,
        }
    }
}
