//! Messages, and the drafts that become messages.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::text::snippet;
use super::{ChatId, MessageId, Rev, Timestamp, UserId, words};

words! {
    /// The types of a message's content.
    MessageKind {
        /// Plain text, which all members of the chat and the server can read.
        Text = "text",
    }
}

/// The content of a message. One commit may write messages of several kinds.
///
/// In JSON, the variant's name is the name of the field of the message that carries the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageBody {
    /// Plain text, checked and trimmed.
    Text(String),
}

impl MessageBody {
    /// The body of a row of the table `messages`; `None` once the message is removed.
    pub fn from_columns(kind: MessageKind, text: Option<String>) -> Option<Self> {
        match kind {
            MessageKind::Text => text.map(Self::Text),
        }
    }

    /// The type of the content.
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Text(_) => MessageKind::Text,
        }
    }

    /// The text, if the content has one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
        }
    }

    /// The beginning of the content, for the inbox.
    pub fn snippet(&self) -> Option<String> {
        self.text().map(snippet)
    }
}

/// The fields of a [`MessageBody`] in a message, for the API's document.
#[derive(ToSchema)]
pub struct MessageBodyFields {
    /// 1 to 4096 characters. Absent once the message is removed.
    pub text: Option<String>,
}

/// A message. A removed message keeps its position but has no body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// The chat that contains the message.
    pub chat_id: ChatId,
    /// The position of the message in the chat.
    pub id: MessageId,
    /// The chat's revision of the last change of the message.
    pub rev: Rev,
    /// The user who sent the message.
    pub sender_id: UserId,
    /// The type of the content.
    pub kind: MessageKind,
    /// The content. Absent once the message is removed.
    #[serde(flatten)]
    #[schema(value_type = MessageBodyFields)]
    pub body: Option<MessageBody>,
    /// The position of the message that this message answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reply_to: Option<MessageId>,
    /// The sender's idempotency key. Only the sender sees it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client_id: Option<String>,
    /// When the server accepted the message.
    pub sent_at: Timestamp,
    /// When the text was last changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub edited_at: Option<Timestamp>,
    /// When the message was removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub removed_at: Option<Timestamp>,
}

impl Message {
    /// The text, if the content has one and was not removed.
    pub fn text(&self) -> Option<&str> {
        self.body.as_ref().and_then(MessageBody::text)
    }

    /// The message as `viewer` may see it: without the idempotency key, unless `viewer` is the
    /// sender.
    #[must_use]
    pub fn for_viewer(mut self, viewer: UserId) -> Self {
        if self.sender_id != viewer {
            self.client_id = None;
        }
        self
    }
}

/// A message that is checked but has no position in its chat yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The chat to send to.
    pub chat_id: ChatId,
    /// The user who sends.
    pub sender_id: UserId,
    /// The content.
    pub body: MessageBody,
    /// The position of the message that this draft answers.
    pub reply_to: Option<MessageId>,
    /// The sender's idempotency key.
    pub client_id: Option<String>,
}

impl Draft {
    /// 128 bits of the SHA-256 of the content. Distinguishes two drafts with the same `client_id`,
    /// even after the message was edited or removed.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        hash.update(self.reply_to.map_or(0, |id| id.0).to_le_bytes());
        match &self.body {
            MessageBody::Text(text) => hash.update(text.as_bytes()),
        }
        hash.finalize()[..16].to_vec()
    }
}

/// The message of a committed [`Draft`].
#[derive(Clone, Debug)]
pub enum Sent {
    /// The draft became a new message.
    New(Message),
    /// An earlier draft with the same `client_id` became this message. It may have changed since.
    Repeated(Message),
}

impl Sent {
    /// The message, new or repeated.
    pub fn into_message(self) -> Message {
        match self {
            Self::New(message) | Self::Repeated(message) => message,
        }
    }
}
