//! Sending: many messages to many chats in one commit.
//!
//! Both dialects do the same in the same five steps. The chats' rows are locked in the order of their ids; under the
//! locks membership is read and positions are given out, in memory; then everything is written at once. That a
//! `client_id` comes again is left to the unique index to notice, since it is rare: only a batch that met a repeat is
//! run again with a look-up. What differs is how a list of rows is passed to a statement: as arrays on Postgres, as a JSON
//! array of arrays on SQLite.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use super::messages::MessageRow;
use super::{Store, Tx, Work, failure, is_unique_violation, timed};
use crate::model::chat::{Action, permit};
use crate::model::message::{Draft, Sent};
use crate::model::text::snippet;
use crate::model::{
    ChatId, ChatKind, Code, Error, Message, MessageId, MessageKind, Result, Rev, Role, Timestamp, UserId,
};

/// What became of each draft, in their order.
pub type Appended = Vec<Result<Sent>>;

/// The head of a chat's log while a batch grows it.
#[derive(Clone, Debug, FromRow)]
struct Head {
    id: ChatId,
    #[sqlx(try_from = "String")]
    kind: ChatKind,
    rev: Rev,
    last_message_id: MessageId,
}

/// The message that a key placed before, and the fingerprint of what it carried then.
#[derive(FromRow)]
struct Earlier {
    #[sqlx(flatten)]
    message: MessageRow,
    fingerprint: Option<Vec<u8>>,
}

type Key = (ChatId, UserId, String);

impl Store {
    /// Sends drafts in one commit, each placed at the end of its chat in the order given. The outer error means that
    /// none was placed as far as is known; the inner ones refuse single drafts: `chat_not_found`, `not_allowed`,
    /// `client_id_reused`, `message_not_found` for a `reply_to` that isn't there.
    pub async fn append(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        timed("append", async {
            match self.append_batch(drafts, now, false).await {
                Err(error) if is_unique_violation(&error) => self.append_batch(drafts, now, true).await,
                result => result,
            }
        })
        .await
    }

    async fn append_batch(&self, drafts: &[Draft], now: Timestamp, look_up: bool) -> Result<Appended> {
        let mut work = self.begin().await?;
        let mut placement = Placement {
            heads: lock_heads(&mut work, drafts).await?,
            // A statement of its own, after the locks: it sees every removal that came before this batch.
            roles: read_roles(&mut work, drafts).await?,
            earlier: if look_up { read_earlier(&mut work, drafts).await? } else { HashMap::new() },
            placed_keys: HashMap::new(),
            now,
        };
        let mut appended: Appended = Vec::with_capacity(drafts.len());
        for (index, draft) in drafts.iter().enumerate() {
            let placed = placement.place(index, draft, &appended);
            appended.push(placed);
        }
        let fresh: Vec<Fresh<'_>> = appended
            .iter()
            .zip(drafts)
            .filter_map(|(sent, draft)| match sent {
                Ok(Sent::New(message)) => {
                    Some(Fresh { message, fingerprint: draft.client_id.as_ref().map(|_| draft.fingerprint()) })
                }
                _ => None,
            })
            .collect();
        if !fresh.is_empty() {
            write(&mut work, &fresh, now).await?;
            work.commit().await?;
        }
        Ok(appended)
    }
}

/// A message that got its place.
struct Fresh<'a> {
    message: &'a Message,
    fingerprint: Option<Vec<u8>>,
}

/// Gives drafts their places, in memory, from what was read under the locks.
struct Placement<'a> {
    heads: HashMap<ChatId, Head>,
    roles: HashMap<(ChatId, UserId), Role>,
    earlier: HashMap<Key, Earlier>,
    /// Keys placed by this batch: the index of their draft.
    placed_keys: HashMap<(ChatId, UserId, &'a str), usize>,
    now: Timestamp,
}

impl<'a> Placement<'a> {
    fn place(&mut self, index: usize, draft: &'a Draft, before: &[Result<Sent>]) -> Result<Sent> {
        let not_found = || Error::new(Code::ChatNotFound);
        let role = self.roles.get(&(draft.chat_id, draft.sender_id)).ok_or_else(not_found)?;
        let head = self.heads.get_mut(&draft.chat_id).ok_or_else(not_found)?;
        permit(head.kind, *role, Action::Write)?;
        if let Some(client_id) = draft.client_id.as_deref() {
            if let Some(earlier) = self.earlier.get(&(draft.chat_id, draft.sender_id, client_id.to_owned())) {
                let same = earlier.fingerprint.as_deref() == Some(draft.fingerprint().as_slice());
                return if same {
                    Ok(Sent::Repeated(earlier.message.clone().into()))
                } else {
                    Err(Code::ClientIdReused.into())
                };
            }
            let key = (draft.chat_id, draft.sender_id, client_id);
            if let Some(Ok(Sent::New(first))) = self.placed_keys.get(&key).map(|first| &before[*first]) {
                let same = first.text.as_deref() == Some(draft.text.as_str()) && first.reply_to == draft.reply_to;
                return if same { Ok(Sent::Repeated(first.clone())) } else { Err(Code::ClientIdReused.into()) };
            }
        }
        if draft.reply_to.is_some_and(|id| id.0 < 1 || id > head.last_message_id) {
            return Err(Error::with_detail(Code::MessageNotFound, "reply_to is no message of this chat"));
        }
        head.rev = head.rev.next();
        head.last_message_id = head.last_message_id.next();
        if let Some(client_id) = draft.client_id.as_deref() {
            self.placed_keys.insert((draft.chat_id, draft.sender_id, client_id), index);
        }
        Ok(Sent::New(message(draft, head, self.now)))
    }
}

fn message(draft: &Draft, head: &Head, now: Timestamp) -> Message {
    Message {
        chat_id: draft.chat_id,
        id: head.last_message_id,
        rev: head.rev,
        sender_id: draft.sender_id,
        kind: MessageKind::Text,
        text: Some(draft.text.clone()),
        reply_to: draft.reply_to,
        client_id: draft.client_id.clone(),
        sent_at: now,
        edited_at: None,
        removed_at: None,
    }
}

/// Takes the locks of the drafts' chats, in the order of their ids.
async fn lock_heads(work: &mut Work, drafts: &[Draft]) -> Result<HashMap<ChatId, Head>> {
    let mut chats: Vec<Uuid> = drafts.iter().map(|draft| draft.chat_id.0).collect();
    chats.sort_unstable();
    chats.dedup();
    let heads: Vec<Head> = match &mut work.inner {
        Tx::Postgres(tx) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL
                       ORDER BY id FOR NO KEY UPDATE";
            sqlx::query_as(sql).bind(chats).fetch_all(&mut **tx).await
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats
                       WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND removed_at_ms IS NULL";
            let rows = chats.iter().map(|chat| hex(chat.as_bytes()));
            sqlx::query_as(sql).bind(Value::from_iter(rows).to_string()).fetch_all(&mut **tx).await
        }
    }
    .map_err(failure)?;
    Ok(heads.into_iter().map(|head| (head.id, head)).collect())
}

async fn read_roles(work: &mut Work, drafts: &[Draft]) -> Result<HashMap<(ChatId, UserId), Role>> {
    #[derive(FromRow)]
    struct Row {
        chat_id: ChatId,
        user_id: UserId,
        #[sqlx(try_from = "String")]
        role: Role,
    }
    let rows: Vec<Row> = match &mut work.inner {
        Tx::Postgres(tx) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role FROM UNNEST($1::uuid[], $2::uuid[]) AS d (chat_id, user_id)
                       JOIN members m ON m.chat_id = d.chat_id AND m.user_id = d.user_id AND m.left_rev IS NULL";
            let (chats, users): (Vec<Uuid>, Vec<Uuid>) =
                drafts.iter().map(|draft| (draft.chat_id.0, draft.sender_id.0)).unzip();
            sqlx::query_as(sql).bind(chats).bind(users).fetch_all(&mut **tx).await
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role FROM json_each($1) d
                       JOIN members m ON m.chat_id = unhex(d.value ->> 0) AND m.user_id = unhex(d.value ->> 1)
                           AND m.left_rev IS NULL";
            let rows = drafts.iter().map(|draft| json!([id(draft.chat_id.0), id(draft.sender_id.0)]));
            sqlx::query_as(sql).bind(Value::from_iter(rows).to_string()).fetch_all(&mut **tx).await
        }
    }
    .map_err(failure)?;
    Ok(rows.into_iter().map(|row| ((row.chat_id, row.user_id), row.role)).collect())
}

/// The columns of [`Earlier`]; the message is `m`.
macro_rules! earlier {
    ($tail:literal) => {
        concat!(
            "SELECT m.chat_id, m.id, m.rev, m.sent_rev, m.sender_id, m.kind, m.text, m.reply_to, m.client_id, \
             m.sent_at_ms, m.edited_at_ms, m.removed_at_ms, m.fingerprint FROM ",
            $tail
        )
    };
}

async fn read_earlier(work: &mut Work, drafts: &[Draft]) -> Result<HashMap<Key, Earlier>> {
    let keyed = drafts
        .iter()
        .filter_map(|draft| draft.client_id.as_deref().map(|key| (draft.chat_id.0, draft.sender_id.0, key)));
    let rows: Vec<Earlier> = match &mut work.inner {
        Tx::Postgres(tx) => {
            let sql = earlier!(
                "UNNEST($1::uuid[], $2::uuid[], $3::text[]) AS d (chat_id, sender_id, client_id) \
                 JOIN messages m ON m.chat_id = d.chat_id AND m.sender_id = d.sender_id AND m.client_id = d.client_id"
            );
            let (mut chats, mut senders, mut keys) = (Vec::new(), Vec::new(), Vec::new());
            for (chat, sender, key) in keyed {
                chats.push(chat);
                senders.push(sender);
                keys.push(key);
            }
            sqlx::query_as(sql).bind(chats).bind(senders).bind(keys).fetch_all(&mut **tx).await
        }
        Tx::Sqlite(tx) => {
            let sql = earlier!(
                "json_each($1) d JOIN messages m ON m.chat_id = unhex(d.value ->> 0) \
                 AND m.sender_id = unhex(d.value ->> 1) AND m.client_id = d.value ->> 2"
            );
            let rows = keyed.map(|(chat, sender, key)| json!([id(chat), id(sender), key]));
            sqlx::query_as(sql).bind(Value::from_iter(rows).to_string()).fetch_all(&mut **tx).await
        }
    }
    .map_err(failure)?;
    let placed = rows.into_iter().map(|earlier| (Message::from(earlier.message.clone()), earlier));
    Ok(placed
        .map(|(message, earlier)| {
            ((message.chat_id, message.sender_id, message.client_id.unwrap_or_default()), earlier)
        })
        .collect())
}

/// Writes messages, heads and the senders' own read markers.
async fn write(work: &mut Work, fresh: &[Fresh<'_>], now: Timestamp) -> Result<()> {
    // Per chat the newest message, and per sender and chat the newest of theirs: the last one put in stays.
    let heads: HashMap<ChatId, &Message> = fresh.iter().map(|it| (it.message.chat_id, it.message)).collect();
    let markers: HashMap<(ChatId, UserId), MessageId> =
        fresh.iter().map(|it| ((it.message.chat_id, it.message.sender_id), it.message.id)).collect();
    match &mut work.inner {
        Tx::Postgres(tx) => postgres::write(tx, fresh, &heads, &markers, now).await,
        Tx::Sqlite(tx) => sqlite::write(tx, fresh, &heads, &markers, now).await,
    }
    .map_err(failure)
}

type Heads<'a> = HashMap<ChatId, &'a Message>;
type Markers = HashMap<(ChatId, UserId), MessageId>;

mod postgres {
    use sqlx::{Postgres, Transaction};

    use super::{Fresh, Heads, Markers, Message, MessageKind, Timestamp, Uuid, snippet};

    /// All in one statement: a round trip costs more than the rows.
    const WRITE: &str = "
        WITH sent AS (
            INSERT INTO messages
                (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint, sent_at_ms)
            SELECT d.chat_id, d.id, d.rev, d.rev, d.sender_id, $10, d.text, d.reply_to, d.client_id, d.fingerprint, $9
            FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::uuid[], $5::text[], $6::bigint[], $7::text[], $8::bytea[])
                AS d (chat_id, id, rev, sender_id, text, reply_to, client_id, fingerprint)
        ), headed AS (
            UPDATE chats c SET rev = h.rev, last_message_id = h.id, last_sender_id = h.sender_id, last_text = h.text,
                last_kind = $10, last_sent_at_ms = $9, activity_at_ms = $9
            FROM UNNEST($11::uuid[], $12::bigint[], $13::bigint[], $14::uuid[], $15::text[])
                AS h (chat_id, rev, id, sender_id, text)
            WHERE c.id = h.chat_id
        )
        UPDATE members m SET last_read_message_id = r.message_id
        FROM UNNEST($16::uuid[], $17::uuid[], $18::bigint[]) AS r (chat_id, user_id, message_id)
        WHERE m.chat_id = r.chat_id AND m.user_id = r.user_id AND m.last_read_message_id < r.message_id";

    pub async fn write(
        tx: &mut Transaction<'static, Postgres>,
        fresh: &[Fresh<'_>],
        heads: &Heads<'_>,
        markers: &Markers,
        now: Timestamp,
    ) -> sqlx::Result<()> {
        fn column<'a, T>(fresh: &[Fresh<'a>], get: impl Fn(&'a Message) -> T) -> Vec<T> {
            fresh.iter().map(|it| get(it.message)).collect()
        }
        fn of_heads<'a, T>(heads: &Heads<'a>, get: impl Fn(&'a Message) -> T) -> Vec<T> {
            heads.values().map(|message| get(message)).collect()
        }
        sqlx::query(WRITE)
            .bind(column(fresh, |message| message.chat_id.0))
            .bind(column(fresh, |message| message.id.0))
            .bind(column(fresh, |message| message.rev.0))
            .bind(column(fresh, |message| message.sender_id.0))
            .bind(column(fresh, |message| message.text.as_deref()))
            .bind(column(fresh, |message| message.reply_to.map(|id| id.0)))
            .bind(column(fresh, |message| message.client_id.as_deref()))
            .bind(fresh.iter().map(|it| it.fingerprint.as_deref()).collect::<Vec<_>>())
            .bind(now)
            .bind(MessageKind::Text.as_str())
            .bind(of_heads(heads, |message| message.chat_id.0))
            .bind(of_heads(heads, |message| message.rev.0))
            .bind(of_heads(heads, |message| message.id.0))
            .bind(of_heads(heads, |message| message.sender_id.0))
            .bind(of_heads(heads, |message| message.text.as_deref().map(snippet)))
            .bind(markers.keys().map(|(chat_id, _)| chat_id.0).collect::<Vec<Uuid>>())
            .bind(markers.keys().map(|(_, user_id)| user_id.0).collect::<Vec<Uuid>>())
            .bind(markers.values().map(|id| id.0).collect::<Vec<i64>>())
            .execute(&mut **tx)
            .await
            .map(drop)
    }
}

mod sqlite {
    use sqlx::{Sqlite, Transaction};

    use super::{Fresh, Heads, Markers, MessageKind, Timestamp, Value, hex, id, json, snippet};

    const MESSAGES: &str = "
        INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint, sent_at_ms)
        SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 2, unhex(value ->> 3), $3, value ->> 4, value ->> 5,
            value ->> 6, unhex(value ->> 7), $2 FROM json_each($1)";
    const HEADS: &str = "
        UPDATE chats SET rev = d.value ->> 1, last_message_id = d.value ->> 2, last_sender_id = unhex(d.value ->> 3),
            last_text = d.value ->> 4, last_kind = $3, last_sent_at_ms = $2, activity_at_ms = $2
        FROM json_each($1) d WHERE chats.id = unhex(d.value ->> 0)";
    const MARKERS: &str = "
        UPDATE members SET last_read_message_id = d.value ->> 2 FROM json_each($1) d
        WHERE chat_id = unhex(d.value ->> 0) AND user_id = unhex(d.value ->> 1) AND last_read_message_id < d.value ->> 2";

    pub async fn write(
        tx: &mut Transaction<'static, Sqlite>,
        fresh: &[Fresh<'_>],
        heads: &Heads<'_>,
        markers: &Markers,
        now: Timestamp,
    ) -> sqlx::Result<()> {
        let kind = MessageKind::Text.as_str();
        let messages = fresh.iter().map(|Fresh { message, fingerprint }| {
            let (chat, sender) = (id(message.chat_id.0), id(message.sender_id.0));
            let print = fingerprint.as_deref().map(hex);
            json!([chat, message.id, message.rev, sender, message.text, message.reply_to, message.client_id, print])
        });
        sqlx::query(MESSAGES).bind(list(messages)).bind(now).bind(kind).execute(&mut **tx).await?;
        let heads = heads.values().map(|message| {
            let (chat, sender) = (id(message.chat_id.0), id(message.sender_id.0));
            json!([chat, message.rev, message.id, sender, message.text.as_deref().map(snippet)])
        });
        sqlx::query(HEADS).bind(list(heads)).bind(now).bind(kind).execute(&mut **tx).await?;
        let markers = markers.iter().map(|((chat, user), message)| json!([id(chat.0), id(user.0), message]));
        sqlx::query(MARKERS).bind(list(markers)).execute(&mut **tx).await.map(drop)
    }

    fn list(rows: impl Iterator<Item = Value>) -> String {
        rows.collect::<Value>().to_string()
    }
}

/// An id as SQLite's `unhex` reads it.
fn id(id: Uuid) -> String {
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
