//! Sending: many messages to many chats in one commit.
//!
//! The chats' rows are locked in the order of their ids; under the locks membership is read,
//! positions are given out and everything is written at once. On Postgres one statement does all of
//! that for drafts with nothing in the way ([`place`]). What it leaves, and all of SQLite, goes
//! step by step ([`Store::append_checked`]), which finds out why a draft is refused, or that its
//! `client_id` came before. Two that come with one `client_id` at the same moment are left to the
//! unique index to notice, since that is rare.
//!
//! A chat whose row another transaction holds must not hold up the others of its batch. So
//! [`Store::try_append`] waits for a lock only briefly, then does without the chats that it can't
//! have and leaves their drafts to [`Store::append_patiently`]. The sessions of the appenders' own
//! pool are opened with that short `lock_timeout`, so the ordinary case pays no round trip for it.
//! SQLite has one writer, which waits for nobody.
//!
//! A list of rows is passed to a statement as arrays on Postgres, as a JSON array of arrays on
//! SQLite.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use super::append_postgres::{Locks, place};
use super::append_sqlite::{self, id};
use super::engine::Pool;
use super::messages::MessageRow;
use super::{
    Db, Store, Tx, Work, ended, failure, is_lock_timeout, is_unique_violation, lent, on_lease,
    timed,
};
use crate::metrics;
use crate::model::chat::{Action, permit};
use crate::model::faults::{self, Mutant};
use crate::model::message::{Draft, Sent};
use crate::model::{
    ChatId, ChatKind, Code, Error, Message, MessageId, MessageKind, Result, Rev, Role, Timestamp,
    UserId,
};

/// What became of each draft, in their order.
pub type Appended = Vec<Result<Sent>>;

/// The same; `None` for a draft whose chat another transaction holds. It was neither placed nor
/// refused.
pub type Attempted = Vec<Option<Result<Sent>>>;

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
    /// Sends drafts as [`Store::try_append`] does, and then, patiently, those whose chats were
    /// held.
    pub async fn append(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        let mut attempted = self.try_append(drafts, now).await?;
        let held = pick(drafts, &attempted);
        if !held.is_empty() {
            fill(&mut attempted, self.append_patiently(&held, now).await?.into_iter().map(Some));
        }
        Ok(attempted.into_iter().map(|sent| sent.unwrap_or_else(lost)).collect())
    }

    /// Sends drafts in one commit or two, each placed at the end of its chat in the order given.
    /// The outer error means that none was placed as far as is known; the inner ones refuse single
    /// drafts: `chat_not_found`, `not_allowed`, `client_id_reused`, `message_not_found` for a
    /// `reply_to` that isn't there. The drafts of a chat that another transaction holds for more
    /// than [`APPEND_LOCK_MAX`](crate::model::limits::APPEND_LOCK_MAX) are left.
    pub async fn try_append(&self, drafts: &[Draft], now: Timestamp) -> Result<Attempted> {
        timed("append", || async {
            let keyless: Vec<Draft>;
            let drafts = if faults::on(Mutant::DedupeForgotten) {
                keyless =
                    drafts.iter().map(|draft| Draft { client_id: None, ..draft.clone() }).collect();
                &keyless
            } else {
                drafts
            };
            #[cfg(feature = "faults")]
            if faults::on(Mutant::SequenceOrder) {
                return self.append_numbered_first(drafts, now).await;
            }
            if faults::on(Mutant::AckBeforeCommit) {
                return self.append_checked(drafts, now, true, Locks::Wait).await;
            }
            match &self.appenders {
                Db::Postgres(pool) => self.append_at_once(pool, drafts, now).await,
                Db::Sqlite(_) => match self.append_checked(drafts, now, false, Locks::Wait).await {
                    Err(error) if is_unique_violation(&error) => {
                        self.append_checked(drafts, now, true, Locks::Wait).await
                    }
                    result => result,
                },
            }
        })
        .await
    }

    /// Sends drafts in one commit, each placed at the end of its chat in the order given, and waits
    /// for the chats' locks for as long as a statement may take. Errors as of
    /// [`Store::try_append`]; `unavailable` if a lock was not to be had.
    pub async fn append_patiently(&self, drafts: &[Draft], now: Timestamp) -> Result<Appended> {
        timed("append_patiently", || async {
            let attempted = self.append_checked(drafts, now, true, Locks::Wait).await?;
            Ok(attempted.into_iter().map(|sent| sent.unwrap_or_else(lost)).collect())
        })
        .await
    }

    /// The ordinary case in one round trip: what the statement does not place is checked with all
    /// care, to be placed after all or to learn why not.
    async fn append_at_once(
        &self,
        pool: &Pool,
        drafts: &[Draft],
        now: Timestamp,
    ) -> Result<Attempted> {
        let mut attempted: Attempted = vec![None; drafts.len()];
        let repeating = chats_with_repeats(drafts);
        let ordinary: Vec<usize> = (0..drafts.len())
            .filter(|index| !repeating.contains(&drafts[*index].chat_id))
            .collect();
        let chosen: Vec<&Draft> = ordinary.iter().map(|index| &drafts[*index]).collect();

        let mut locks = Locks::WaitBriefly;
        let mut outcome = self.place_at_once(pool, &chosen, locks, now).await;
        if outcome.as_ref().is_err_and(is_lock_timeout) {
            metrics::append_met_lock();
            locks = Locks::Skip;
            outcome = self.place_at_once(pool, &chosen, locks, now).await;
        }
        let places = match outcome {
            Ok(places) => places,
            // Another transaction placed one of the keys at the same moment.
            Err(error) if is_unique_violation(&error) => Vec::new(),
            // Not a chat is locked, but a table.
            Err(error) if is_lock_timeout(&error) => return Ok(attempted),
            Err(error) => return Err(error),
        };
        for (number, id, rev) in &places {
            let index = ordinary[*number];
            attempted[index] = Some(Ok(Sent::New(message(&drafts[index], *id, *rev, now))));
        }

        let unplaced = pick(drafts, &attempted);
        if unplaced.is_empty() {
            return Ok(attempted);
        }
        let mut checked = self.append_checked(&unplaced, now, true, locks).await;
        if locks == Locks::WaitBriefly && checked.as_ref().is_err_and(is_lock_timeout) {
            metrics::append_met_lock();
            checked = self.append_checked(&unplaced, now, true, Locks::Skip).await;
        }
        match checked {
            Ok(checked) => fill(&mut attempted, checked.into_iter()),
            Err(error) if is_lock_timeout(&error) => {}
            Err(error) if places.is_empty() => return Err(error),
            // What was placed stays placed, and its senders hear so.
            Err(error) => fill(&mut attempted, unplaced.iter().map(|_| Some(Err(error.clone())))),
        }
        Ok(attempted)
    }

    async fn place_at_once(
        &self,
        pool: &Pool,
        drafts: &[&Draft],
        locks: Locks,
        now: Timestamp,
    ) -> Result<Vec<(usize, MessageId, Rev)>> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        self.statements.fetch_add(1, Ordering::Relaxed);
        lent!(pool, |db| place(db, drafts, false, locks, now))
    }

    /// Begins a unit of work of an appender.
    async fn begin_append(&self, locks: Locks) -> Result<Work> {
        let Db::Postgres(pool) = &self.appenders else { return self.begin().await };
        // One round trip, both.
        let patiently = "BEGIN; SET LOCAL lock_timeout = 0";
        let begin = if locks == Locks::Wait { patiently } else { "BEGIN" };
        let inner = Tx::Postgres(pool.begin(begin).await.map_err(failure)?);
        Ok(Work { inner, statements: self.statements.clone() })
    }

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
            // A statement of its own, after the locks: it sees every removal that came before this
            // batch.
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
            if faults::on(Mutant::AckBeforeCommit) && now.as_ms() % 20 == 0 {
                return Ok(attempted);
            }
            work.commit().await?;
        }
        Ok(attempted)
    }
}

/// The drafts of which nothing has become yet.
fn pick(drafts: &[Draft], attempted: &Attempted) -> Vec<Draft> {
    let undecided = attempted.iter().zip(drafts).filter(|(sent, _)| sent.is_none());
    undecided.map(|(_, draft)| draft.clone()).collect()
}

/// Notes what became of those drafts, in their order.
fn fill(attempted: &mut Attempted, outcomes: impl Iterator<Item = Option<Result<Sent>>>) {
    let undecided = attempted.iter_mut().filter(|sent| sent.is_none());
    for (sent, outcome) in undecided.zip(outcomes) {
        *sent = outcome;
    }
}

pub(super) fn lost() -> Result<Sent> {
    Err(Error::internal("a draft was neither placed nor refused"))
}

/// Chats into which one sender sends one key twice in this batch: which of the two counts is found
/// out step by step.
fn chats_with_repeats(drafts: &[Draft]) -> HashSet<ChatId> {
    let mut keys = HashSet::with_capacity(drafts.len());
    let mut chats = HashSet::new();
    for draft in drafts {
        let Some(key) = draft.client_id.as_deref() else { continue };
        if !keys.insert((draft.chat_id, draft.sender_id, key)) {
            chats.insert(draft.chat_id);
        }
    }
    chats
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
                let same = first.text.as_deref() == Some(draft.text.as_str())
                    && first.reply_to == draft.reply_to;
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
                "reply_to is no message of this chat",
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
        kind: MessageKind::Text,
        text: Some(draft.text.clone()),
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

/// Which of these chats are there, and not among those locked: another transaction holds them.
async fn held_chats(
    work: &mut Work,
    drafts: &[Draft],
    locked: &HashMap<ChatId, Head>,
) -> Result<HashSet<ChatId>> {
    work.count_statement();
    let Tx::Postgres(lease) = &mut work.inner else { return Ok(HashSet::new()) };
    let sql = "SELECT id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL";
    let there: Vec<ChatId> =
        on_lease!(lease, |db| sqlx::query_scalar(sql).bind(chats_of(drafts)).fetch_all(db))?;
    Ok(there.into_iter().filter(|chat_id| !locked.contains_key(chat_id)).collect())
}

/// Takes the locks of the drafts' chats, in the order of their ids.
async fn lock_heads(
    work: &mut Work,
    drafts: &[Draft],
    locks: Locks,
) -> Result<HashMap<ChatId, Head>> {
    work.count_statement();
    let chats = chats_of(drafts);
    let heads: Vec<Head> = match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL
                       ORDER BY id FOR NO KEY UPDATE";
            let skipping = "SELECT id, kind, rev, last_message_id FROM chats
                            WHERE id = ANY($1) AND removed_at_ms IS NULL ORDER BY id FOR NO KEY UPDATE SKIP LOCKED";
            let sql = if locks == Locks::Skip { skipping } else { sql };
            on_lease!(lease, |db| sqlx::query_as(sql).bind(chats).fetch_all(db))?
        }
        Tx::Sqlite(tx) => {
            let sql = "SELECT id, kind, rev, last_message_id FROM chats
                       WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND removed_at_ms IS NULL";
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
    work.count_statement();
    let keyed = drafts.iter().filter_map(|draft| {
        draft.client_id.as_deref().map(|key| (draft.chat_id.0, draft.sender_id.0, key))
    });
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
    let placed = rows.into_iter().map(|earlier| (Message::from(earlier.message.clone()), earlier));
    Ok(placed
        .map(|(message, earlier)| {
            ((message.chat_id, message.sender_id, message.client_id.unwrap_or_default()), earlier)
        })
        .collect())
}

/// Writes messages, heads and the senders' own read markers.
async fn write(work: &mut Work, fresh: &[(&Message, &Draft)], now: Timestamp) -> Result<()> {
    work.count_statement();
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let drafts: Vec<&Draft> = fresh.iter().map(|(_, draft)| *draft).collect();
            let places = on_lease!(lease, |db| place(db, &drafts, true, Locks::Wait, now))?;
            // Under the locks both come to the same; if not, nothing may be told that is not so.
            let agreed = places.len() == fresh.len()
                && places.iter().all(|(index, id, rev)| {
                    (fresh[*index].0.id, fresh[*index].0.rev) == (*id, *rev)
                });
            if agreed {
                Ok(())
            } else {
                Err(Error::internal("the places given out and those written differ"))
            }
        }
        Tx::Sqlite(tx) => append_sqlite::write(tx, fresh, now).await.map_err(failure),
        Tx::Ended => Err(ended()),
    }
}
