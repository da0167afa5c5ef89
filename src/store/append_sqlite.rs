//! Sending on SQLite: writes the messages of a batch from lists in JSON.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

use crate::model::message::Draft;
use crate::model::{ChatId, Message, MessageBody, MessageId, Timestamp, UserId};

const MESSAGES: &str = "
    INSERT INTO messages
        (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint,
         sent_at_ms)
    SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 2, unhex(value ->> 3),
        value ->> 4, value ->> 5, value ->> 6, value ->> 7, unhex(value ->> 8), $2
    FROM json_each($1)";
const HEADS: &str = "
    UPDATE chats SET rev = d.value ->> 1, last_message_id = d.value ->> 2,
        last_sender_id = unhex(d.value ->> 3), last_text = d.value ->> 4,
        last_kind = d.value ->> 5, last_sent_at_ms = $2, activity_at_ms = $2
    FROM json_each($1) d WHERE chats.id = unhex(d.value ->> 0)";
const MARKERS: &str = "
    UPDATE members SET last_read_message_id = d.value ->> 2 FROM json_each($1) d
    WHERE chat_id = unhex(d.value ->> 0) AND user_id = unhex(d.value ->> 1)
      AND last_read_message_id < d.value ->> 2";

/// Writes messages, heads and the senders' read markers.
pub async fn write(
    tx: &mut Transaction<'static, Sqlite>,
    fresh: &[(&Message, &Draft)],
    now: Timestamp,
) -> sqlx::Result<()> {
    // The newest message of each chat, and of each sender in a chat: a later one replaces an
    // earlier one in the map.
    let heads: HashMap<ChatId, &Message> =
        fresh.iter().map(|(message, _)| (message.chat_id, *message)).collect();
    let markers: HashMap<(ChatId, UserId), MessageId> = fresh
        .iter()
        .map(|(message, _)| ((message.chat_id, message.sender_id), message.id))
        .collect();

    let messages = fresh.iter().map(|(message, draft)| {
        let (chat, sender) = (id(message.chat_id.0), id(message.sender_id.0));
        let print = draft.client_id.as_ref().map(|_| hex(&draft.fingerprint()));
        json!([
            chat,
            message.id,
            message.rev,
            sender,
            message.kind.as_str(),
            message.text(),
            message.reply_to,
            message.client_id,
            print
        ])
    });

    sqlx::query(MESSAGES).bind(list(messages)).bind(now).execute(&mut **tx).await?;

    let heads = heads.values().map(|message| {
        let (chat, sender) = (id(message.chat_id.0), id(message.sender_id.0));
        let snippet = message.body.as_ref().and_then(MessageBody::snippet);
        json!([chat, message.rev, message.id, sender, snippet, message.kind.as_str()])
    });

    sqlx::query(HEADS).bind(list(heads)).bind(now).execute(&mut **tx).await?;

    let markers =
        markers.iter().map(|((chat, user), message)| json!([id(chat.0), id(user.0), message]));
    sqlx::query(MARKERS).bind(list(markers)).execute(&mut **tx).await.map(drop)
}

/// A list of rows as `json_each` reads it.
pub fn list(rows: impl Iterator<Item = Value>) -> String {
    rows.collect::<Value>().to_string()
}

/// An id as SQLite's `unhex` reads it.
pub fn id(id: Uuid) -> String {
    id.simple().to_string()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
