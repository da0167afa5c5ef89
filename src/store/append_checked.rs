//! Sending step by step: each statement by itself, with the checks of the drafts in between.
//!
//! A list of rows is passed to a statement as arrays on Postgres, as a JSON array of arrays on
//! SQLite.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use super::append_postgres::{Locks, place};
use super::append_sqlite::{self, id};
use super::messages::MessageRow;
use super::{Db, Store, Tx, Work, ended, failure, on_lease};
use crate::model::chat::{Action, permit};
use crate::model::faults::mutant;
use crate::model::message::{Draft, Sent};
use crate::model::{
    ChatId, ChatKind, Code, Error, Message, MessageId, Result, Rev, Role, Timestamp, UserId,
};

/// The outcome of each draft, in the order of the drafts. `None` for a draft that was neither
/// appended nor refused, because another transaction holds a lock that it needs.
pub type Attempted = Vec<Option<Result<Sent>>>;

/// The head of a chat's log while a batch is appended to it.
#[derive(Clone, Debug, FromRow)]
struct Head {
    id: ChatId,
    #[sqlx(try_from = "String")]
    kind: ChatKind,
    rev: Rev,
    last_message_id: MessageId,
}

/// The message that was sent with a `client_id` before, and the fingerprint of its draft.
#[derive(FromRow)]
struct Earlier {
    #[sqlx(flatten)]
    message: MessageRow,
    fingerprint: Option<Vec<u8>>,
}

type Key = (ChatId, UserId, String);

impl Store {
    /// Sends drafts step by step, in one commit: locks the chats, reads the memberships, assigns
    /// ids and revs in memory, and writes. With `look_up`, it finds messages that were sent with
    /// the same `client_id` before; without, such a draft fails the batch with a unique violation.
    pub(super) async fn append_checked(
        &self,
        drafts: &[Draft],
        now: Timestamp,
        look_up: bool,
        locks: Locks,
    ) -> Result<Attempted> {
        let mut work = self.begin_append(locks).await?;
        let heads = lock_heads(&mut work, drafts, locks).await?;
        let held = if locks == Locks::Skip {
            held_chats(&mut work, drafts, &heads).await?
        } else {
            HashSet::new()
        };
        let mut placement = Placement {
            heads,
            // Read by a statement of its own, after the locks: it sees every removal of a member
            // that was committed before this batch.
            roles: read_roles(&mut work, drafts).await?,
            earlier: if look_up { read_earlier(&mut work, drafts).await? } else { HashMap::new() },
            placed_keys: HashMap::new(),
            now,
        };

        let mut attempted: Attempted = Vec::with_capacity(drafts.len());
        for (index, draft) in drafts.iter().enumerate() {
            let free = !held.contains(&draft.chat_id);
            let placed = free.then(|| placement.place(index, draft, &attempted));
            attempted.push(placed);
        }

        let fresh: Vec<(&Message, &Draft)> = attempted
            .iter()
            .zip(drafts)
            .filter_map(|(sent, draft)| match sent {
                Some(Ok(Sent::New(message))) => Some((message, draft)),
                _ => None,
            })
            .collect();
        if !fresh.is_empty() {
            write(&mut work, &fresh, now).await?;
            mutant!(AckBeforeCommit => if now.as_ms() % 20 == 0 { return Ok(attempted); });
            work.commit().await?;
        }
        Ok(attempted)
    }

    /// Begins a unit of work of an appender.
    async fn begin_append(&self, locks: Locks) -> Result<Work> {
        let Db::Postgres(pool) = &self.appenders else { return self.begin().await };

        // The session's `lock_timeout` is short; one round trip begins and lifts it.
        let unlimited = "BEGIN; SET LOCAL lock_timeout = 0";
        let begin = if locks == Locks::Wait { unlimited } else { "BEGIN" };
        let inner = Tx::Postgres(pool.begin(begin).await.map_err(failure)?);
        Ok(Work { inner, statements: self.statements.clone() })
    }
}

/// Assigns ids and revs to drafts, in memory, from the rows that were read under the locks.
struct Placement<'a> {
    heads: HashMap<ChatId, Head>,
    roles: HashMap<(ChatId, UserId), Role>,
    earlier: HashMap<Key, Earlier>,
    /// For each `client_id` of this batch, the index of the draft that was appended with it.
    placed_keys: HashMap<(ChatId, UserId, &'a str), usize>,
    now: Timestamp,
}

impl<'a> Placement<'a> {
    /// `before` holds the outcomes of the drafts before this one.
    fn place(
        &mut self,
        index: usize,
        draft: &'a Draft,
        before: &[Option<Result<Sent>>],
    ) -> Result<Sent> {
        let not_found = || Error::new(Code::ChatNotFound);
        let role = self.roles.get(&(draft.chat_id, draft.sender_id)).ok_or_else(not_found)?;
        let head = self.heads.get_mut(&draft.chat_id).ok_or_else(not_found)?;
        permit(head.kind, *role, Action::Write)?;

        if let Some(client_id) = draft.client_id.as_deref() {
            if let Some(earlier) =
                self.earlier.get(&(draft.chat_id, draft.sender_id, client_id.to_owned()))
            {
                let same = earlier.fingerprint.as_deref() == Some(draft.fingerprint().as_slice());
                return if same {
                    Ok(Sent::Repeated(earlier.message.clone().into()))
                } else {
                    Err(Code::ClientIdReused.into())
                };
            }

            let key = (draft.chat_id, draft.sender_id, client_id);
            if let Some(Some(Ok(Sent::New(first)))) =
                self.placed_keys.get(&key).map(|first| &before[*first])
            {
                let same =
                    first.body.as_ref() == Some(&draft.body) && first.reply_to == draft.reply_to;
                return if same {
                    Ok(Sent::Repeated(first.clone()))
                } else {
                    Err(Code::ClientIdReused.into())
                };
            }
        }

        if draft.reply_to.is_some_and(|id| id.0 < 1 || id > head.last_message_id) {
            return Err(Error::with_detail(
                Code::MessageNotFound,
                "reply_to is not the id of a message of this chat",
            ));
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
        kind: draft.body.kind(),
        body: Some(draft.body.clone()),
        reply_to: draft.reply_to,
        client_id: draft.client_id.clone(),
        sent_at: now,
        edited_at: None,
        removed_at: None,
    }
}

fn chats_of(drafts: &[Draft]) -> Vec<Uuid> {
    let mut chats: Vec<Uuid> = drafts.iter().map(|draft| draft.chat_id.0).collect();
    chats.sort_unstable();
    chats.dedup();
    chats
}

/// The drafts' chats that exist and are not among the locked ones: another transaction holds their
/// row locks.
async fn held_chats(
    work: &mut Work,
    drafts: &[Draft],
    locked: &HashMap<ChatId, Head>,
) -> Result<HashSet<ChatId>> {
    work.count_statement();
    let Tx::Postgres(lease) = &mut work.inner else { return Ok(HashSet::new()) };
    let sql = "SELECT id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL";
    let existing: Vec<ChatId> =
        on_lease!(lease, |db| sqlx::query_scalar(sql).bind(chats_of(drafts)).fetch_all(db))?;
    Ok(existing.into_iter().filter(|chat_id| !locked.contains_key(chat_id)).collect())
}

/// Locks the rows of the drafts' chats, in the order of their ids.
async fn lock_heads(
    work: &mut Work,
    drafts: &[Draft],
    locks: Locks,
) -> Result<HashMap<ChatId, Head>> {
    work.count_statement();
    let chats = chats_of(drafts);
    let heads: Vec<Head> = match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats
                       WHERE id = ANY($1) AND removed_at_ms IS NULL
                       ORDER BY id FOR NO KEY UPDATE";
            let skipping = "SELECT id, kind, rev, last_message_id FROM chats
                            WHERE id = ANY($1) AND removed_at_ms IS NULL
                            ORDER BY id FOR NO KEY UPDATE SKIP LOCKED";
            let sql = if locks == Locks::Skip { skipping } else { sql };
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats
                       WHERE id IN (SELECT unhex(value) FROM json_each($1))
                         AND removed_at_ms IS NULL";
            let rows = chats.iter().map(|chat| Value::from(id(*chat)));
            sqlx::query_as(sql)
                .bind(append_sqlite::list(rows))
                .fetch_all(&mut **tx)
                .await
                .map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };
    Ok(heads.into_iter().map(|head| (head.id, head)).collect())
}

/// The roles of the drafts' senders in the drafts' chats. A sender who is no member has none.
async fn read_roles(work: &mut Work, drafts: &[Draft]) -> Result<HashMap<(ChatId, UserId), Role>> {
    #[derive(FromRow)]
    struct Row {
        chat_id: ChatId,
        user_id: UserId,
        #[sqlx(try_from = "String")]
        role: Role,
    }

    work.count_statement();
    let rows: Vec<Row> = match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role
                       FROM UNNEST($1::uuid[], $2::uuid[]) AS d (chat_id, user_id)
                       JOIN members m ON m.chat_id = d.chat_id AND m.user_id = d.user_id
                           AND m.left_rev IS NULL";
            let (chats, users): (Vec<Uuid>, Vec<Uuid>) =
                drafts.iter().map(|draft| (draft.chat_id.0, draft.sender_id.0)).unzip();
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).bind(users).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT m.chat_id, m.user_id, m.role FROM json_each($1) d
                       JOIN members m ON m.chat_id = unhex(d.value ->> 0)
                           AND m.user_id = unhex(d.value ->> 1) AND m.left_rev IS NULL";
            let rows =
                drafts.iter().map(|draft| json!([id(draft.chat_id.0), id(draft.sender_id.0)]));
            sqlx::query_as(sql)
                .bind(append_sqlite::list(rows))
                .fetch_all(&mut **tx)
                .await
                .map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };
    Ok(rows.into_iter().map(|row| ((row.chat_id, row.user_id), row.role)).collect())
}

/// Begins a statement with the columns of [`Earlier`]; the message is `m`.
macro_rules! earlier {
    ($tail:literal) => {
        concat!(
            "SELECT m.chat_id, m.id, m.rev, m.sent_rev, m.sender_id, m.kind, m.text, m.reply_to, \
             m.client_id, m.sent_at_ms, m.edited_at_ms, m.removed_at_ms, m.fingerprint FROM ",
            $tail
        )
    };
}

/// The messages that were sent before with the `client_id`s of these drafts.
async fn read_earlier(work: &mut Work, drafts: &[Draft]) -> Result<HashMap<Key, Earlier>> {
    work.count_statement();
    let keyed = drafts.iter().filter_map(|draft| {
        draft.client_id.as_deref().map(|key| (draft.chat_id.0, draft.sender_id.0, key))
    });
    let rows: Vec<Earlier> = match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = earlier!(
                "UNNEST($1::uuid[], $2::uuid[], $3::text[]) AS d (chat_id, sender_id, client_id) \
                 JOIN messages m ON m.chat_id = d.chat_id AND m.sender_id = d.sender_id \
                 AND m.client_id = d.client_id"
            );
            let (mut chats, mut senders, mut keys) = (Vec::new(), Vec::new(), Vec::new());
            for (chat, sender, key) in keyed {
                chats.push(chat);
                senders.push(sender);
                keys.push(key);
            }
            on_lease!(lease, |db| sqlx::query_as(sql)
                .bind(chats)
                .bind(senders)
                .bind(keys)
                .fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = earlier!(
                "json_each($1) d JOIN messages m ON m.chat_id = unhex(d.value ->> 0) \
                 AND m.sender_id = unhex(d.value ->> 1) AND m.client_id = d.value ->> 2"
            );
            let rows = keyed.map(|(chat, sender, key)| json!([id(chat), id(sender), key]));
            sqlx::query_as(sql)
                .bind(append_sqlite::list(rows))
                .fetch_all(&mut **tx)
                .await
                .map_err(failure)?
        }
        Tx::Ended => return Err(ended()),
    };

    let with_messages =
        rows.into_iter().map(|earlier| (Message::from(earlier.message.clone()), earlier));
    Ok(with_messages
        .map(|(message, earlier)| {
            ((message.chat_id, message.sender_id, message.client_id.unwrap_or_default()), earlier)
        })
        .collect())
}

/// Writes messages, heads and the senders' read markers.
async fn write(work: &mut Work, fresh: &[(&Message, &Draft)], now: Timestamp) -> Result<()> {
    work.count_statement();
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let drafts: Vec<&Draft> = fresh.iter().map(|(_, draft)| *draft).collect();
            let positions = on_lease!(lease, |db| place(db, &drafts, true, Locks::Wait, now))?;
            // Under the locks, memory and database assign the same ids and revs. If they differ,
            // the batch must fail, since its answers would be wrong.
            let agreed = positions.len() == fresh.len()
                && positions.iter().all(|(index, id, rev)| {
                    (fresh[*index].0.id, fresh[*index].0.rev) == (*id, *rev)
                });
            if agreed {
                Ok(())
            } else {
                Err(Error::internal("the ids and revs in memory and in the database differ"))
            }
        }
        Tx::Sqlite(tx) => append_sqlite::write(tx, fresh, now).await.map_err(failure),
        Tx::Ended => Err(ended()),
    }
}
