//! The frames that a client sends. One enum defines their format, schema and documentation.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::server_frame::FrameId;
use crate::model::limits::FRAME_ID_BYTES_MAX;
use crate::model::{ChatId, Code, Error, MessageId, Result, Rev, UserId, json};

macro_rules! client_frames {
    ($(
        $(#[$doc:meta])+
        $variant:ident($body:ident) = $word:literal {
            $($(#[$field_doc:meta])+ $field:ident: $type:ty),* $(,)?
        }
    )+) => {
        $(
            $(#[$doc])+
            #[derive(Clone, Debug, Deserialize, ToSchema)]
            #[serde(deny_unknown_fields)]
            pub struct $body {
                #[doc = "The type of the frame."]
                #[serde(rename = "type")]
                #[schema(value_type = String, pattern = $word)]
                _type: IgnoredAny,
                #[doc = "The answer repeats it."]
                #[serde(rename = "id", default)]
                #[schema(value_type = Option<FrameId>)]
                _id: Option<IgnoredAny>,
                $($(#[$field_doc])+ pub $field: $type,)*
            }
        )+

        /// A frame from a client.
        #[derive(Clone, Debug)]
        pub enum ClientFrame { $($(#[$doc])+ $variant($body)),+ }

        impl ClientFrame {
            /// The `type` of each frame.
            pub const TYPES: &[&str] = &[$($word),+];

            /// The frame's `type`.
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $word),+ }
            }

            fn decode(kind: &str, bytes: &[u8]) -> Result<Self> {
                match kind {
                    $($word => json::decode(bytes).map(Self::$variant),)+
                    _ => Err(Error::new(Code::UnknownFrame)),
                }
            }

            /// The schema of each frame by its `type`, for the `AsyncAPI` document.
            pub fn schemas() -> Vec<(&'static str, RefOr<Schema>)> {
                vec![$(($word, <$body as utoipa::PartialSchema>::schema())),+]
            }
        }
    };
}

client_frames! {
    /// Authenticates the connection within its first 5 s, unless the handshake did.
    Authenticate(AuthenticateFrame) = "authenticate" {
        /// An access token.
        token: String,
    }
    /// The heartbeat of the client.
    Ping(PingFrame) = "ping" {}
    /// Requests the missed events and all future events. Allowed once per connection.
    Sync(SyncFrame) = "sync" {
        /// The epoch of the revisions in `chats`, from `ready`. If it is not the present epoch,
        /// each of these chats gets `reset`.
        #[serde(default)]
        epoch: Option<String>,
        /// The chats that the client has, each with the last revision that it received.
        #[serde(default)]
        chats: Option<HashMap<ChatId, Rev>>,
    }
    /// Sends a message. The `ack` comes once the message is durable.
    SendMessage(SendMessageFrame) = "send_message" {
        /// The chat to send to.
        chat_id: ChatId,
        /// 1 to 4096 characters after trimming.
        text: String,
        /// Idempotency key, 1 to 64 characters. A retry with the same key sends no second message.
        #[serde(default)]
        client_id: Option<String>,
        /// The position of the message that this message answers.
        #[serde(default)]
        reply_to: Option<MessageId>,
    }
    /// Changes the text of a message of the user.
    EditMessage(EditMessageFrame) = "edit_message" {
        /// The chat that contains the message.
        chat_id: ChatId,
        /// The position of the message to change.
        message_id: MessageId,
        /// The new text, 1 to 4096 characters after trimming.
        text: String,
    }
    /// Removes a message.
    RemoveMessage(RemoveMessageFrame) = "remove_message" {
        /// The chat that contains the message.
        chat_id: ChatId,
        /// The position of the message to remove.
        message_id: MessageId,
    }
    /// Moves the user's read marker forward.
    Read(ReadFrame) = "read" {
        /// The chat of the read marker.
        chat_id: ChatId,
        /// The position of the last message that the user read.
        message_id: MessageId,
    }
    /// Watches the presence of users, in addition to the users watched already. The server sends
    /// one `presence` of each user now and one with each change from now on, and, if this frame has
    /// an `id`, an `ack` after the first `presence` of all. It sends nothing about users who share
    /// no chat with the caller; a user who shares one later must be named again.
    WatchPresence(WatchPresenceFrame) = "watch_presence" {
        /// Up to 200 users, and up to 1,000 per connection. An empty list ends all watches.
        user_ids: Vec<UserId>,
    }
    /// Shows the other members that the user is typing. Has no answer.
    Typing(TypingFrame) = "typing" {
        /// The chat in which the user is typing.
        chat_id: ChatId,
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Incoming {
    /// The frame's `id`, which the answer repeats. `None` if it is absent or could not be read.
    pub id: Option<FrameId>,
    /// The frame, or the error of its decoding.
    pub frame: Result<ClientFrame>,
}

impl Incoming {
    /// Reads a text frame.
    pub fn read(text: &str) -> Self {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "type", default)]
            kind: Option<String>,
            #[serde(default)]
            id: Option<FrameId>,
        }

        let envelope: Envelope = match json::decode(text.as_bytes()) {
            Ok(envelope) => envelope,
            Err(error) => {
                return Self { id: None, frame: Err(error) };
            }
        };

        if matches!(&envelope.id, Some(FrameId::Text(id)) if id.len() > FRAME_ID_BYTES_MAX) {
            let error = Error::field("id", format!("has more than {FRAME_ID_BYTES_MAX} bytes"));
            return Self { id: None, frame: Err(error) };
        }

        let frame = match &envelope.kind {
            Some(kind) => ClientFrame::decode(kind, text.as_bytes()),
            None => Err(Error::field("type", "is missing")),
        };
        Self { id: envelope.id, frame }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_carries_the_id_of_the_frame() {
        let incoming = Incoming::read(r#"{"type":"send_message","id":7,"text":1}"#);
        assert_eq!(incoming.id, Some(FrameId::Number(7)));
        assert_eq!(incoming.frame.unwrap_err().code, Code::InvalidFields);

        let incoming = Incoming::read(r#"{"type":"dance","id":"a"}"#);
        assert_eq!(incoming.id, Some(FrameId::Text("a".into())));
        assert_eq!(incoming.frame.unwrap_err().code, Code::UnknownFrame);
    }

    #[test]
    fn fields_that_no_frame_has_are_refused() {
        assert!(Incoming::read(r#"{"type":"ping"}"#).frame.is_ok());
        assert!(Incoming::read(r#"{"type":"ping","colour":1}"#).frame.is_err());
        assert!(Incoming::read(r#"{"type":"ping","id":{}}"#).frame.is_err());
    }

    proptest! {
        #[test]
        fn reading_any_text_does_not_panic(text in "\\PC{0,200}") {
            let _ = Incoming::read(&text);
        }

        #[test]
        fn reading_any_object_does_not_panic(
            kind in "(ping|sync|send_message|read|x)?",
            id in any::<i64>(),
            text in "\\PC{0,40}",
        ) {
            let json = serde_json::json!({"type": kind, "id": id, "text": text, "chat_id": text});
            let incoming = Incoming::read(&json.to_string());
            prop_assert_eq!(incoming.id, Some(FrameId::Number(id)));
        }
    }
}
