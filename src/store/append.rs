//! Sending: many messages to many chats in one commit.
//!
//! Both dialects do the same. The chats' rows are locked in the order of their ids; under the locks membership is
//! checked, repeats of a `client_id` are found and positions are given out; then everything is written at once. On
//! Postgres the look-up of repeats is left to the unique index, since repeats are rare: only a batch that met one is run
//! again with the look-up. SQLite's one writer goes message by message, which in-process costs no round trips.

use std::collections::HashMap;

use sqlx::{FromRow, PgPool, Postgres, SqlitePool, Transaction};
use uuid::Uuid;

use super::messages::{MessageRow, messages};
use super::{Db, Store, failure, is_unique_violation, timed};
use crate::model::chat::{Action, permit};
use crate::model::message::{Draft, Sent};
use crate::model::text::snippet;
use crate::model::{
    ChatId, ChatKind, Code, Error, Message, MessageId, MessageKind, Result, Rev, Role, Timestamp, UserId,
};

/// What became of each draft, in their order.
pub type Appended = Vec<Result<Sent>>;

/// The head of a chat's log while a batch grows it.
#[derive(Clone, Debug)]
struct Head {
    kind: ChatKind,
    rev: Rev,
    last: MessageId,
}

#[derive(FromRow)]
struct HeadRow {
    id: ChatId,
    #[sqlx(try_from = "String")]
    kind: ChatKind,
    rev: Rev,
    last_message_id: MessageId,
}

/// The message that a key placed before, and the fingerprint of what it carried then.
struct Earlier {
    message: Message,
    fingerprint: Option<Vec<u8>>,
}

type Key = (ChatId, UserId, String);

impl Store {
    /// Sends drafts in one commit, each placed at the end of its chat in the order given. The outer error means that
    /// none was placed as far as is known; the inner ones refuse single drafts: `chat_not_found`, `not_allowed`,
    /// `client_id_reused`, `message_not_found` for a `reply_to` that isn't there.
    pub async fn append(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        timed("append", async {
            match &self.writer {
                Db::Sqlite(pool) => append_sqlite(pool, drafts, now).await,
                Db::Postgres(pool) => {
                    let optimistic = append_postgres(pool, drafts, now, false).await;
                    match optimistic {
                        Err(error) if is_unique_violation(&error) => append_postgres(pool, drafts, now, true).await,
                        result => result,
                    }
                }
            }
        })
        .await
    }
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
                    Ok(Sent::Repeated(earlier.message.clone()))
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
        if draft.reply_to.is_some_and(|id| id.0 < 1 || id > head.last) {
            return Err(Error::with_detail(Code::MessageNotFound, "reply_to is no message of this chat"));
        }
        head.rev = head.rev.next();
        head.last = head.last.next();
        if let Some(client_id) = draft.client_id.as_deref() {
            self.placed_keys.insert((draft.chat_id, draft.sender_id, client_id), index);
        }
        Ok(Sent::New(message(draft, head, self.now)))
    }
}

fn message(draft: &Draft, head: &Head, now: Timestamp) -> Message {
    Message {
        chat_id: draft.chat_id,
        id: head.last,
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

async fn append_postgres(pool: &PgPool, drafts: &[Draft], now: Timestamp, look_up: bool) -> Result<Appended> {
    let mut tx = pool.begin().await.map_err(failure)?;
    let mut chats: Vec<Uuid> = drafts.iter().map(|draft| draft.chat_id.0).collect();
    chats.sort_unstable();
    chats.dedup();
    let heads: Vec<HeadRow> = sqlx::query_as(
        "SELECT id, kind, rev, last_message_id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL
         ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(&chats)
    .fetch_all(&mut *tx)
    .await
    .map_err(failure)?;
    let mut placement = Placement {
        heads: heads
            .into_iter()
            .map(|row| (row.id, Head { kind: row.kind, rev: row.rev, last: row.last_message_id }))
            .collect(),
        // A statement of its own, after the locks: it sees every removal that came before this batch.
        roles: roles_postgres(&mut tx, drafts).await?,
        earlier: if look_up { earlier_postgres(&mut tx, drafts).await? } else { HashMap::new() },
        placed_keys: HashMap::new(),
        now,
    };
    let mut appended: Appended = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.iter().enumerate() {
        let placed = placement.place(index, draft, &appended);
        appended.push(placed);
    }
    let fresh: Vec<(&Message, &Draft)> = appended
        .iter()
        .zip(drafts)
        .filter_map(|(sent, draft)| match sent {
            Ok(Sent::New(message)) => Some((message, draft)),
            _ => None,
        })
        .collect();
    if !fresh.is_empty() {
        write_postgres(&mut tx, &fresh).await?;
        tx.commit().await.map_err(failure)?;
    }
    Ok(appended)
}

async fn roles_postgres(
    tx: &mut Transaction<'static, Postgres>,
    drafts: &[Draft],
) -> Result<HashMap<(ChatId, UserId), Role>> {
    #[derive(FromRow)]
    struct Row {
        chat_id: ChatId,
        user_id: UserId,
        #[sqlx(try_from = "String")]
        role: Role,
    }
    let (chats, users): (Vec<Uuid>, Vec<Uuid>) =
        drafts.iter().map(|draft| (draft.chat_id.0, draft.sender_id.0)).unzip();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT m.chat_id, m.user_id, m.role FROM UNNEST($1::uuid[], $2::uuid[]) AS d (chat_id, user_id)
         JOIN members m ON m.chat_id = d.chat_id AND m.user_id = d.user_id AND m.left_rev IS NULL",
    )
    .bind(chats)
    .bind(users)
    .fetch_all(&mut **tx)
    .await
    .map_err(failure)?;
    Ok(rows.into_iter().map(|row| ((row.chat_id, row.user_id), row.role)).collect())
}

#[derive(FromRow)]
struct EarlierRow {
    #[sqlx(flatten)]
    message: MessageRow,
    fingerprint: Option<Vec<u8>>,
}

impl From<EarlierRow> for Earlier {
    fn from(row: EarlierRow) -> Self {
        Self { message: row.message.into(), fingerprint: row.fingerprint }
    }
}

async fn earlier_postgres(tx: &mut Transaction<'static, Postgres>, drafts: &[Draft]) -> Result<HashMap<Key, Earlier>> {
    let keyed: Vec<&Draft> = drafts.iter().filter(|draft| draft.client_id.is_some()).collect();
    let chats: Vec<Uuid> = keyed.iter().map(|draft| draft.chat_id.0).collect();
    let senders: Vec<Uuid> = keyed.iter().map(|draft| draft.sender_id.0).collect();
    let keys: Vec<&str> = keyed.iter().filter_map(|draft| draft.client_id.as_deref()).collect();
    let rows: Vec<EarlierRow> = sqlx::query_as(
        "SELECT m.chat_id, m.id, m.rev, m.sent_rev, m.sender_id, m.kind, m.text, m.reply_to, m.client_id, m.sent_at_ms,
                m.edited_at_ms, m.removed_at_ms, m.fingerprint
         FROM UNNEST($1::uuid[], $2::uuid[], $3::text[]) AS d (chat_id, sender_id, client_id)
         JOIN messages m ON m.chat_id = d.chat_id AND m.sender_id = d.sender_id AND m.client_id = d.client_id",
    )
    .bind(chats)
    .bind(senders)
    .bind(keys)
    .fetch_all(&mut **tx)
    .await
    .map_err(failure)?;
    let key = |message: &Message| (message.chat_id, message.sender_id, message.client_id.clone().unwrap_or_default());
    Ok(rows.into_iter().map(Earlier::from).map(|earlier| (key(&earlier.message), earlier)).collect())
}

/// Messages, heads and the senders' own read markers, in one statement.
async fn write_postgres(tx: &mut Transaction<'static, Postgres>, fresh: &[(&Message, &Draft)]) -> Result<()> {
    // Per chat the newest message, and per sender and chat the newest of theirs: the last one put in stays.
    let last_of: HashMap<ChatId, &Message> = fresh.iter().map(|(message, _)| (message.chat_id, *message)).collect();
    let markers: HashMap<(ChatId, UserId), i64> =
        fresh.iter().map(|(message, _)| ((message.chat_id, message.sender_id), message.id.0)).collect();
    let last: Vec<&Message> = last_of.into_values().collect();
    let column = |get: fn(&Message) -> i64| fresh.iter().map(|(message, _)| get(message)).collect::<Vec<i64>>();
    let fingerprints: Vec<Option<Vec<u8>>> =
        fresh.iter().map(|(_, draft)| draft.client_id.as_ref().map(|_| draft.fingerprint())).collect();
    sqlx::query(WRITE)
        .bind(fresh.iter().map(|(message, _)| message.chat_id.0).collect::<Vec<Uuid>>())
        .bind(column(|message| message.id.0))
        .bind(column(|message| message.rev.0))
        .bind(fresh.iter().map(|(message, _)| message.sender_id.0).collect::<Vec<Uuid>>())
        .bind(fresh.iter().map(|(message, _)| message.text.as_deref()).collect::<Vec<Option<&str>>>())
        .bind(fresh.iter().map(|(message, _)| message.reply_to.map(|id| id.0)).collect::<Vec<Option<i64>>>())
        .bind(fresh.iter().map(|(message, _)| message.client_id.as_deref()).collect::<Vec<Option<&str>>>())
        .bind(fingerprints)
        .bind(fresh.first().map_or(0, |(message, _)| message.sent_at.as_ms()))
        .bind(MessageKind::Text.as_str())
        .bind(last.iter().map(|message| message.chat_id.0).collect::<Vec<Uuid>>())
        .bind(last.iter().map(|message| message.rev.0).collect::<Vec<i64>>())
        .bind(last.iter().map(|message| message.id.0).collect::<Vec<i64>>())
        .bind(last.iter().map(|message| message.sender_id.0).collect::<Vec<Uuid>>())
        .bind(last.iter().map(|message| message.text.as_deref().map(snippet)).collect::<Vec<Option<String>>>())
        .bind(markers.keys().map(|(chat_id, _)| chat_id.0).collect::<Vec<Uuid>>())
        .bind(markers.keys().map(|(_, user_id)| user_id.0).collect::<Vec<Uuid>>())
        .bind(markers.values().copied().collect::<Vec<i64>>())
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(failure)
}

const WRITE: &str = "
    WITH sent AS (
        INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint, sent_at_ms)
        SELECT d.chat_id, d.id, d.rev, d.rev, d.sender_id, $10, d.text, d.reply_to, d.client_id, d.fingerprint, $9
        FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::uuid[], $5::text[], $6::bigint[], $7::text[], $8::bytea[])
            AS d (chat_id, id, rev, sender_id, text, reply_to, client_id, fingerprint)
    ), headed AS (
        UPDATE chats c SET rev = h.rev, last_message_id = h.id, last_sender_id = h.sender_id, last_text = h.text,
            last_kind = $10, last_sent_at_ms = $9, activity_at_ms = $9
        FROM UNNEST($11::uuid[], $12::bigint[], $13::bigint[], $14::uuid[], $15::text[]) AS h (chat_id, rev, id, sender_id, text)
        WHERE c.id = h.chat_id
    )
    UPDATE members m SET last_read_message_id = r.message_id
    FROM UNNEST($16::uuid[], $17::uuid[], $18::bigint[]) AS r (chat_id, user_id, message_id)
    WHERE m.chat_id = r.chat_id AND m.user_id = r.user_id AND m.last_read_message_id < r.message_id";

async fn append_sqlite(pool: &SqlitePool, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failure)?;
    let mut appended: Appended = Vec::with_capacity(drafts.len());
    for draft in drafts {
        match append_one_sqlite(&mut tx, draft, now).await {
            // A database that fails in the middle fails the batch; a refusal is this draft's alone, and wrote nothing.
            Err(error) if matches!(error.code, Code::Unavailable | Code::Internal) => {
                return Err(error);
            }
            sent => appended.push(sent),
        }
    }
    tx.commit().await.map_err(failure)?;
    Ok(appended)
}

async fn append_one_sqlite(tx: &mut Transaction<'static, sqlx::Sqlite>, draft: &Draft, now: Timestamp) -> Result<Sent> {
    let found: Option<(String, String, Rev, MessageId)> = sqlx::query_as(
        "SELECT c.kind, m.role, c.rev, c.last_message_id FROM members m
         JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
         WHERE m.chat_id = $1 AND m.user_id = $2 AND m.left_rev IS NULL",
    )
    .bind(draft.chat_id)
    .bind(draft.sender_id)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failure)?;
    let mut placement = Placement {
        heads: HashMap::new(),
        roles: HashMap::new(),
        earlier: HashMap::new(),
        placed_keys: HashMap::new(),
        now,
    };
    if let Some((kind, role, rev, last)) = found {
        let kind = kind.try_into().map_err(|bad: String| Error::internal(bad))?;
        let role = role.try_into().map_err(|bad: String| Error::internal(bad))?;
        placement.heads.insert(draft.chat_id, Head { kind, rev, last });
        placement.roles.insert((draft.chat_id, draft.sender_id), role);
    }
    if let Some(client_id) = &draft.client_id
        && let Some(earlier) = earlier_sqlite(tx, draft, client_id).await?
    {
        placement.earlier.insert((draft.chat_id, draft.sender_id, client_id.clone()), earlier);
    }
    let sent = placement.place(0, draft, &[])?;
    if let Sent::New(message) = &sent {
        write_sqlite(tx, message, draft).await?;
    }
    Ok(sent)
}

async fn earlier_sqlite(
    tx: &mut Transaction<'static, sqlx::Sqlite>,
    draft: &Draft,
    client_id: &str,
) -> Result<Option<Earlier>> {
    let row: Option<MessageRow> = sqlx::query_as(messages!("AND sender_id = $2 AND client_id = $3"))
        .bind(draft.chat_id)
        .bind(draft.sender_id)
        .bind(client_id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failure)?;
    let Some(row) = row else { return Ok(None) };
    let message = Message::from(row);
    let fingerprint = sqlx::query_scalar("SELECT fingerprint FROM messages WHERE chat_id = $1 AND id = $2")
        .bind(draft.chat_id)
        .bind(message.id)
        .fetch_one(&mut **tx)
        .await
        .map_err(failure)?;
    Ok(Some(Earlier { message, fingerprint }))
}

async fn write_sqlite(tx: &mut Transaction<'static, sqlx::Sqlite>, message: &Message, draft: &Draft) -> Result<()> {
    sqlx::query(
        "INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint, sent_at_ms)
         VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(message.chat_id)
    .bind(message.id)
    .bind(message.rev)
    .bind(message.sender_id)
    .bind(message.kind.as_str())
    .bind(message.text.as_deref())
    .bind(message.reply_to)
    .bind(message.client_id.as_deref())
    .bind(draft.client_id.as_ref().map(|_| draft.fingerprint()))
    .bind(message.sent_at)
    .execute(&mut **tx)
    .await
    .map_err(failure)?;
    sqlx::query(
        "UPDATE chats SET rev = $2, last_message_id = $3, last_sender_id = $4, last_text = $5, last_kind = $6,
             last_sent_at_ms = $7, activity_at_ms = $7 WHERE id = $1",
    )
    .bind(message.chat_id)
    .bind(message.rev)
    .bind(message.id)
    .bind(message.sender_id)
    .bind(message.text.as_deref().map(snippet))
    .bind(message.kind.as_str())
    .bind(message.sent_at)
    .execute(&mut **tx)
    .await
    .map_err(failure)?;
    sqlx::query(
        "UPDATE members SET last_read_message_id = $3 WHERE chat_id = $1 AND user_id = $2 AND last_read_message_id < $3",
    )
    .bind(message.chat_id)
    .bind(message.sender_id)
    .bind(message.id)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(failure)
}
