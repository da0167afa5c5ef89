//! Sending on Postgres: the statement that appends the ordinary drafts.

use std::sync::LazyLock;

use sqlx::{PgExecutor, Row};
use uuid::Uuid;

use crate::model::chat::{Action, permit};
use crate::model::message::Draft;
use crate::model::{ChatKind, MessageId, Rev, Role, Timestamp};

/// Locks, checks, assigns ids and revs, and writes: one statement and so one round trip, which on
/// a loaded machine costs more than the rows. Postgres reads a locked row in its latest version, so
/// a member who was removed while this statement waited for the chat counts as removed.
///
/// The statement leaves out the drafts of senders whom [`crate::model::chat::permit`] does not let
/// write, and the drafts whose `client_id` exists already. Neither gets an id, so they can be
/// checked one by one later without delaying the others. If another draft of a chat has a
/// `reply_to` that does not exist, the statement leaves out the entire chat: the drafts before it
/// decide whether it is refused, and no draft of its chat may overtake it.
///
/// The look-up of a `client_id` is LATERAL with a limit, so that Postgres probes the unique index
/// once per draft, whatever its statistics of the table are.
const PLACE: &str = "
    WITH d AS (
        SELECT * FROM UNNEST(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
            $8::bytea[]
        ) WITH ORDINALITY AS d (chat_id, sender_id, body_kind, text, snippet, reply_to, client_id,
            fingerprint, number)
    ), head AS MATERIALIZED (
        SELECT c.id AS chat_id, c.kind, c.rev, c.last_message_id, m.user_id, m.role
        FROM (SELECT DISTINCT chat_id, sender_id FROM d) p
        JOIN chats c ON c.id = p.chat_id AND c.removed_at_ms IS NULL
        JOIN members m ON m.chat_id = p.chat_id AND m.user_id = p.sender_id AND m.left_rev IS NULL
        ORDER BY c.id, m.user_id FOR NO KEY UPDATE OF c, m
    ), judged AS (
        SELECT d.*, head.rev AS head_rev, head.last_message_id AS head_id,
            head.chat_id IS NOT NULL AND head.kind || ' ' || head.role <> ALL ($11::text[])
                AND earlier.id IS NULL AS may_be_placed
        FROM d LEFT JOIN head ON head.chat_id = d.chat_id AND head.user_id = d.sender_id
        LEFT JOIN LATERAL (
            SELECT m.id FROM messages m
            WHERE m.chat_id = d.chat_id AND m.sender_id = d.sender_id
              AND m.client_id = d.client_id LIMIT 1
        ) earlier ON TRUE
    ), checked AS (
        SELECT j.*, BOOL_AND(NOT j.may_be_placed OR $10 OR j.reply_to IS NULL
                OR j.reply_to BETWEEN 1 AND j.head_id)
            OVER (PARTITION BY j.chat_id) AS chat_is_fine
        FROM judged j
    ), placed AS MATERIALIZED (
        SELECT c.*, c.head_rev + ROW_NUMBER() OVER in_chat AS rev,
            c.head_id + ROW_NUMBER() OVER in_chat AS id
        FROM checked c WHERE c.may_be_placed AND c.chat_is_fine
        WINDOW in_chat AS (PARTITION BY c.chat_id ORDER BY c.number)
    ), sent AS (
        INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to,
            client_id, fingerprint, sent_at_ms)
        SELECT chat_id, id, rev, rev, sender_id, body_kind, text, reply_to, client_id,
            fingerprint, $9
        FROM placed
    ), headed AS (
        UPDATE chats c SET rev = l.rev, last_message_id = l.id, last_sender_id = l.sender_id,
            last_text = l.snippet, last_kind = l.body_kind, last_sent_at_ms = $9,
            activity_at_ms = $9
        FROM (SELECT DISTINCT ON (chat_id) * FROM placed ORDER BY chat_id, id DESC) l
        WHERE c.id = l.chat_id
    ), read AS (
        UPDATE members m SET last_read_message_id = r.id
        FROM (SELECT chat_id, sender_id, MAX(id) AS id FROM placed GROUP BY chat_id, sender_id) r
        WHERE m.chat_id = r.chat_id AND m.user_id = r.sender_id AND m.last_read_message_id < r.id
    )
    SELECT number, id, rev FROM placed ORDER BY number";

/// [`PLACE`] without waiting: it leaves out the chats whose rows another transaction has locked.
static PLACE_SKIP_LOCKED: LazyLock<String> = LazyLock::new(|| {
    PLACE.replace("FOR NO KEY UPDATE OF c, m", "FOR NO KEY UPDATE OF c, m SKIP LOCKED")
});

/// The kinds of chat and the roles in them that must not write, as [`PLACE`] compares them.
static READ_ONLY: LazyLock<Vec<String>> = LazyLock::new(|| {
    let pairs =
        ChatKind::ALL.iter().flat_map(|kind| Role::ALL.iter().map(move |role| (kind, role)));
    pairs
        .filter(|(kind, role)| permit(**kind, **role, Action::Write).is_err())
        .map(|(kind, role)| format!("{} {}", kind.as_str(), role.as_str()))
        .collect()
});

/// What to do about a row lock that another transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// Wait for as long as a statement may take.
    Wait,
    /// Wait for [`crate::model::limits::APPEND_LOCK_MAX`], the `lock_timeout` of the session.
    WaitBriefly,
    /// Leave out the chat.
    Skip,
}

/// Appends the drafts that [`PLACE`] does not leave out. `replies_checked` means that each
/// `reply_to` exists or is the id of an earlier draft. Returns the index, id and rev of each draft
/// that was appended.
pub async fn place(
    db: impl PgExecutor<'_>,
    drafts: &[&Draft],
    replies_checked: bool,
    locks: Locks,
    now: Timestamp,
) -> sqlx::Result<Vec<(usize, MessageId, Rev)>> {
    let sql = if locks == Locks::Skip { PLACE_SKIP_LOCKED.as_str() } else { PLACE };
    let rows = sqlx::query(sql)
        .bind(drafts.iter().map(|draft| draft.chat_id.0).collect::<Vec<Uuid>>())
        .bind(drafts.iter().map(|draft| draft.sender_id.0).collect::<Vec<Uuid>>())
        .bind(drafts.iter().map(|draft| draft.body.kind().as_str()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.body.text()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.body.snippet()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.reply_to.map(|id| id.0)).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.client_id.as_deref()).collect::<Vec<_>>())
        .bind(
            drafts
                .iter()
                .map(|draft| draft.client_id.as_ref().map(|_| draft.fingerprint()))
                .collect::<Vec<_>>(),
        )
        .bind(now)
        .bind(replies_checked)
        .bind(READ_ONLY.as_slice())
        .fetch_all(db)
        .await?;

    let position = |row: &sqlx::postgres::PgRow| {
        let number: i64 = row.try_get(0)?;
        Ok((
            usize::try_from(number - 1).unwrap_or(usize::MAX),
            MessageId(row.try_get(1)?),
            Rev(row.try_get(2)?),
        ))
    };
    rows.iter().map(position).collect()
}
