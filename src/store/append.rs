//! Sending: many messages to many chats in one commit.
//!
//! The chats' rows are locked in the order of their ids; under the locks membership is read, positions are given out and
//! everything is written at once. On Postgres one statement does all of that for drafts with nothing in the way
//! ([`postgres::place`]). What it leaves, and all of SQLite, goes step by step ([`Store::append_checked`]), which finds
//! out why a draft is refused, or that its `client_id` came before. That a `client_id` comes again is left to the unique
//! index to notice, since it is rare.
//!
//! A list of rows is passed to a statement as arrays on Postgres, as a JSON array of arrays on SQLite.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use super::messages::MessageRow;
use super::pool::Pool;
use super::{Db, Store, Tx, Work, ended, failure, is_unique_violation, lent, on_lease, timed};
use crate::model::chat::{Action, permit};
use crate::model::faults::{self, Mutant};
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
        timed("append", || async {
            let keyless: Vec<Draft>;
            let drafts = if faults::on(Mutant::DedupeForgotten) {
                keyless = drafts.iter().map(|draft| Draft { client_id: None, ..draft.clone() }).collect();
                &keyless
            } else {
                drafts
            };
            #[cfg(feature = "faults")]
            if faults::on(Mutant::SequenceOrder) {
                return self.append_numbered_first(drafts, now).await;
            }
            if faults::on(Mutant::AckBeforeCommit) {
                return self.append_checked(drafts, now, true).await;
            }
            let first = match &self.writer {
                Db::Postgres(pool) => self.append_at_once(pool, drafts, now).await,
                Db::Sqlite(_) => self.append_checked(drafts, now, false).await,
            };
            match first {
                Err(error) if is_unique_violation(&error) => self.append_checked(drafts, now, true).await,
                result => result,
            }
        })
        .await
    }

    /// The ordinary case in one round trip: what the statement does not place is checked with all care, to be placed
    /// after all or to learn why not.
    async fn append_at_once(&self, pool: &Pool, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        let places = lent!(pool, |db| postgres::place(db, &drafts.iter().collect::<Vec<_>>(), false, now))?;
        let mut appended: Vec<Option<Result<Sent>>> = vec![None; drafts.len()];
        for (index, id, rev) in places {
            appended[index] = Some(Ok(Sent::New(message(&drafts[index], id, rev, now))));
        }
        let unplaced: Vec<Draft> =
            appended.iter().zip(drafts).filter(|(sent, _)| sent.is_none()).map(|(_, draft)| draft.clone()).collect();
        let mut checked = Vec::new().into_iter();
        if !unplaced.is_empty() {
            checked = match self.append_checked(&unplaced, now, true).await {
                Ok(checked) => checked.into_iter(),
                // What was placed stays placed, and its senders hear so.
                Err(error) => vec![Err(error); unplaced.len()].into_iter(),
            };
        }
        let lost = || Err(Error::internal("a draft was neither placed nor refused"));
        Ok(appended.into_iter().map(|sent| sent.or_else(|| checked.next()).unwrap_or_else(lost)).collect())
    }

    pub(super) async fn append_checked(&self, drafts: &[Draft], now: Timestamp, look_up: bool) -> Result<Appended> {
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
        let fresh: Vec<(&Message, &Draft)> = appended
            .iter()
            .zip(drafts)
            .filter_map(|(sent, draft)| match sent {
                Ok(Sent::New(message)) => Some((message, draft)),
                _ => None,
            })
            .collect();
        if !fresh.is_empty() {
            write(&mut work, &fresh, now).await?;
            if faults::on(Mutant::AckBeforeCommit) && now.as_ms() % 20 == 0 {
                return Ok(appended);
            }
            work.commit().await?;
        }
        Ok(appended)
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
        Ok(Sent::New(message(draft, head.last_message_id, head.rev, self.now)))
    }
}

pub(super) fn message(draft: &Draft, id: MessageId, rev: Rev, now: Timestamp) -> Message {
    Message {
        chat_id: draft.chat_id,
        id,
        rev,
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
        Tx::Postgres(lease) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL
                       ORDER BY id FOR NO KEY UPDATE";
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats
                       WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND removed_at_ms IS NULL";
            let rows = chats.iter().map(|chat| Value::from(id(*chat)));
            sqlx::query_as(sql).bind(sqlite::list(rows)).fetch_all(&mut **tx).await.map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };
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
        Tx::Postgres(lease) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role FROM UNNEST($1::uuid[], $2::uuid[]) AS d (chat_id, user_id)
                       JOIN members m ON m.chat_id = d.chat_id AND m.user_id = d.user_id AND m.left_rev IS NULL";
            let (chats, users): (Vec<Uuid>, Vec<Uuid>) =
                drafts.iter().map(|draft| (draft.chat_id.0, draft.sender_id.0)).unzip();
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).bind(users).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role FROM json_each($1) d
                       JOIN members m ON m.chat_id = unhex(d.value ->> 0) AND m.user_id = unhex(d.value ->> 1)
                           AND m.left_rev IS NULL";
            let rows = drafts.iter().map(|draft| json!([id(draft.chat_id.0), id(draft.sender_id.0)]));
            sqlx::query_as(sql).bind(sqlite::list(rows)).fetch_all(&mut **tx).await.map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };
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
        Tx::Postgres(lease) => {
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
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).bind(senders).bind(keys).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = earlier!(
                "json_each($1) d JOIN messages m ON m.chat_id = unhex(d.value ->> 0) \
                 AND m.sender_id = unhex(d.value ->> 1) AND m.client_id = d.value ->> 2"
            );
            let rows = keyed.map(|(chat, sender, key)| json!([id(chat), id(sender), key]));
            sqlx::query_as(sql).bind(sqlite::list(rows)).fetch_all(&mut **tx).await.map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };
    let placed = rows.into_iter().map(|earlier| (Message::from(earlier.message.clone()), earlier));
    Ok(placed
        .map(|(message, earlier)| {
            ((message.chat_id, message.sender_id, message.client_id.unwrap_or_default()), earlier)
        })
        .collect())
}

/// Writes messages, heads and the senders' own read markers.
async fn write(work: &mut Work, fresh: &[(&Message, &Draft)], now: Timestamp) -> Result<()> {
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let drafts: Vec<&Draft> = fresh.iter().map(|(_, draft)| *draft).collect();
            let places = on_lease!(lease, |db| postgres::place(db, &drafts, true, now))?;
            // Under the locks both come to the same; if not, nothing may be told that is not so.
            let agreed = places.len() == fresh.len()
                && places.iter().all(|(index, id, rev)| (fresh[*index].0.id, fresh[*index].0.rev) == (*id, *rev));
            if agreed { Ok(()) } else { Err(Error::internal("the places given out and those written differ")) }
        }
        Tx::Sqlite(tx) => sqlite::write(tx, fresh, now).await.map_err(failure),
        Tx::Ended => Err(ended()),
    }
}

mod postgres {
    use sqlx::{PgExecutor, Row};

    use super::{Draft, MessageId, MessageKind, Rev, Timestamp, Uuid, snippet};

    /// Locks, checks, gives out places and writes, in one statement and so in one round trip: on a loaded machine each
    /// costs more than the rows. Locked rows are read in their latest version, so a member removed while this waited
    /// for the chat is seen as removed.
    ///
    /// It leaves all drafts of a chat in which one is not for certain what [`crate::model::chat::permit`] lets write and a
    /// `reply_to` that is there: one by one they are placed or refused in their order.
    const PLACE: &str = "
        WITH d AS (
            SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bytea[])
                WITH ORDINALITY AS d (chat_id, sender_id, text, snippet, reply_to, client_id, fingerprint, number)
        ), head AS MATERIALIZED (
            SELECT c.id AS chat_id, c.kind, c.rev, c.last_message_id, m.user_id, m.role
            FROM (SELECT DISTINCT chat_id, sender_id FROM d) p
            JOIN chats c ON c.id = p.chat_id AND c.removed_at_ms IS NULL
            JOIN members m ON m.chat_id = p.chat_id AND m.user_id = p.sender_id AND m.left_rev IS NULL
            ORDER BY c.id, m.user_id FOR NO KEY UPDATE OF c, m
        ), checked AS (
            SELECT d.*, head.rev AS head_rev, head.last_message_id AS head_id, BOOL_AND(head.chat_id IS NOT NULL
                AND (head.kind <> 'channel' OR head.role <> 'member')
                AND ($10 OR d.reply_to IS NULL OR d.reply_to BETWEEN 1 AND head.last_message_id)
            ) OVER (PARTITION BY d.chat_id) AS chat_is_fine
            FROM d LEFT JOIN head ON head.chat_id = d.chat_id AND head.user_id = d.sender_id
        ), placed AS MATERIALIZED (
            SELECT c.*, c.head_rev + ROW_NUMBER() OVER in_chat AS rev, c.head_id + ROW_NUMBER() OVER in_chat AS id
            FROM checked c WHERE c.chat_is_fine WINDOW in_chat AS (PARTITION BY c.chat_id ORDER BY c.number)
        ), sent AS (
            INSERT INTO messages
                (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint, sent_at_ms)
            SELECT chat_id, id, rev, rev, sender_id, $8, text, reply_to, client_id, fingerprint, $9 FROM placed
        ), headed AS (
            UPDATE chats c SET rev = l.rev, last_message_id = l.id, last_sender_id = l.sender_id, last_text = l.snippet,
                last_kind = $8, last_sent_at_ms = $9, activity_at_ms = $9
            FROM (SELECT DISTINCT ON (chat_id) * FROM placed ORDER BY chat_id, id DESC) l WHERE c.id = l.chat_id
        ), read AS (
            UPDATE members m SET last_read_message_id = r.id
            FROM (SELECT chat_id, sender_id, MAX(id) AS id FROM placed GROUP BY chat_id, sender_id) r
            WHERE m.chat_id = r.chat_id AND m.user_id = r.sender_id AND m.last_read_message_id < r.id
        )
        SELECT number, id, rev FROM placed ORDER BY number";

    /// Places drafts where nothing is in the way. `replies_checked`: each `reply_to` is there, if only by an earlier draft.
    /// Returns the index of each draft that it placed, with its place.
    pub async fn place(
        db: impl PgExecutor<'_>,
        drafts: &[&Draft],
        replies_checked: bool,
        now: Timestamp,
    ) -> sqlx::Result<Vec<(usize, MessageId, Rev)>> {
        let rows = sqlx::query(PLACE)
            .bind(drafts.iter().map(|draft| draft.chat_id.0).collect::<Vec<Uuid>>())
            .bind(drafts.iter().map(|draft| draft.sender_id.0).collect::<Vec<Uuid>>())
            .bind(drafts.iter().map(|draft| draft.text.as_str()).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| snippet(&draft.text)).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| draft.reply_to.map(|id| id.0)).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| draft.client_id.as_deref()).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| draft.client_id.as_ref().map(|_| draft.fingerprint())).collect::<Vec<_>>())
            .bind(MessageKind::Text.as_str())
            .bind(now)
            .bind(replies_checked)
            .fetch_all(db)
            .await?;
        let place = |row: &sqlx::postgres::PgRow| {
            let number: i64 = row.try_get(0)?;
            Ok((usize::try_from(number - 1).unwrap_or(usize::MAX), MessageId(row.try_get(1)?), Rev(row.try_get(2)?)))
        };
        rows.iter().map(place).collect()
    }
}

mod sqlite {
    use std::collections::HashMap;

    use sqlx::{Sqlite, Transaction};

    use super::{ChatId, Draft, Message, MessageId, MessageKind, Timestamp, UserId, Value, hex, id, json, snippet};

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
        fresh: &[(&Message, &Draft)],
        now: Timestamp,
    ) -> sqlx::Result<()> {
        // Per chat the newest message, and per sender and chat the newest of theirs: the last one put in stays.
        let heads: HashMap<ChatId, &Message> = fresh.iter().map(|(message, _)| (message.chat_id, *message)).collect();
        let markers: HashMap<(ChatId, UserId), MessageId> =
            fresh.iter().map(|(message, _)| ((message.chat_id, message.sender_id), message.id)).collect();
        let kind = MessageKind::Text.as_str();
        let messages = fresh.iter().map(|(message, draft)| {
            let (chat, sender) = (id(message.chat_id.0), id(message.sender_id.0));
            let print = draft.client_id.as_ref().map(|_| hex(&draft.fingerprint()));
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

    pub fn list(rows: impl Iterator<Item = Value>) -> String {
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
