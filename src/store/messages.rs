//! Messages one by one: history, edit, remove. Sending is in [`super::append`].

use sqlx::FromRow;

use super::head::Head;
use super::{MapOkDrop, Store, Work, on, timed, within};
use crate::model::chat::{Action, permit};
use crate::model::limits::PAGE_BYTES_MAX;
use crate::model::text::snippet;
use crate::model::{
    ChatId, Code, Error, Message, MessageId, MessageKind, Result, Rev, Timestamp, UserId,
};

#[derive(Clone, FromRow)]
pub(super) struct MessageRow {
    chat_id: ChatId,
    id: MessageId,
    pub rev: Rev,
    pub sent_rev: Rev,
    sender_id: UserId,
    #[sqlx(try_from = "String")]
    kind: MessageKind,
    text: Option<String>,
    reply_to: Option<MessageId>,
    client_id: Option<String>,
    sent_at_ms: Timestamp,
    edited_at_ms: Option<Timestamp>,
    removed_at_ms: Option<Timestamp>,
}

impl From<MessageRow> for Message {
    fn from(row: MessageRow) -> Self {
        Self {
            chat_id: row.chat_id,
            id: row.id,
            rev: row.rev,
            sender_id: row.sender_id,
            kind: row.kind,
            text: row.text,
            reply_to: row.reply_to,
            client_id: row.client_id,
            sent_at: row.sent_at_ms,
            edited_at: row.edited_at_ms,
            removed_at: row.removed_at_ms,
        }
    }
}

/// The columns of [`MessageRow`]; the chat is `$1`.
macro_rules! messages {
    ($tail:literal) => {
        concat!(
            "SELECT chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, sent_at_ms, edited_at_ms, removed_at_ms \
             FROM messages WHERE chat_id = $1 ",
            $tail
        )
    };
}
pub(super) use messages;

/// The same as far as the member `$2` may see it and after the message `$3`. The member is looked
/// up once, before the range is read, and its two lower ends are made one, since SQLite seeks by
/// one only. Without a member the end is `NULL`, which nothing is after.
macro_rules! visible {
    ($tail:literal) => {
        concat!(
            "SELECT chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, sent_at_ms, edited_at_ms, removed_at_ms \
             FROM messages WHERE chat_id = $1 AND id > ( \
                 SELECT CASE WHEN v.cleared_message_id > $3 THEN v.cleared_message_id ELSE $3 END \
                 FROM members v JOIN chats c ON c.id = v.chat_id AND c.removed_at_ms IS NULL \
                 WHERE v.chat_id = $1 AND v.user_id = $2 AND v.left_rev IS NULL) ",
            $tail
        )
    };
}

/// Which part of a history to read; both ends are excluded.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRange {
    /// From after this one, oldest first.
    pub after: Option<MessageId>,
    /// Up to before this one; newest first unless `after` is given.
    pub before: Option<MessageId>,
    /// Messages at most.
    pub max: i64,
}

impl Store {
    /// A page of a chat's history, ascending, as far as `viewer` may see it. Empty if that is no
    /// member: one statement decides that and reads, so nobody reads what came after their removal.
    /// The page holds `range.max` messages, or fewer if their texts reach [`PAGE_BYTES_MAX`], but
    /// at least one where there is one.
    pub async fn history(
        &self,
        chat_id: ChatId,
        viewer: UserId,
        range: HistoryRange,
    ) -> Result<Vec<Message>> {
        timed("history", || async {
            let after = range.after.unwrap_or_default();
            let before = range.before.unwrap_or(MessageId(i64::MAX));
            let rows: Vec<MessageRow> = if range.after.is_some() {
                let mut oldest_first: Vec<MessageRow> = on!(self.reader(), |db| sqlx::query_as(
                    visible!("AND id < $4 ORDER BY id LIMIT $5")
                )
                .bind(chat_id)
                .bind(viewer)
                .bind(after)
                .bind(before)
                .bind(range.max)
                .fetch_all(db))?;
                cut_to_bytes(&mut oldest_first);
                oldest_first
            } else {
                let mut newest_first: Vec<MessageRow> = on!(self.reader(), |db| sqlx::query_as(
                    visible!("AND id < $4 ORDER BY id DESC LIMIT $5")
                )
                .bind(chat_id)
                .bind(viewer)
                .bind(after)
                .bind(before)
                .bind(range.max)
                .fetch_all(db))?;
                cut_to_bytes(&mut newest_first);
                newest_first.reverse();
                newest_first
            };
            Ok(rows.into_iter().map(Message::from).collect())
        })
        .await
    }

    /// One message, if `viewer` may see it.
    pub async fn message(
        &self,
        chat_id: ChatId,
        viewer: UserId,
        id: MessageId,
    ) -> Result<Option<Message>> {
        timed("message", || async {
            let row: Option<MessageRow> =
                on!(self.reader(), |db| sqlx::query_as(visible!("AND id = $4"))
                    .bind(chat_id)
                    .bind(viewer)
                    .bind(MessageId(0))
                    .bind(id)
                    .fetch_optional(db))?;
            Ok(row.map(Message::from))
        })
        .await
    }

    /// Changes the text of one's own message. The message as it is now, and whether it changed.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`, `not_allowed` for another's message,
    /// `message_removed`.
    pub async fn edit_message(
        &self,
        chat_id: ChatId,
        id: MessageId,
        user_id: UserId,
        text: &str,
        now: Timestamp,
    ) -> Result<(Message, bool)> {
        timed("edit_message", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, user_id).await?;
            let message = seen(&mut work, chat_id, id, user_id).await?;
            if message.sender_id != user_id {
                return Err(Code::NotAllowed.into());
            }
            permit(head.kind, head.role, Action::Write)?;
            if message.removed_at.is_some() {
                return Err(Code::MessageRemoved.into());
            }
            if message.text.as_deref() == Some(text) {
                return Ok((message, false));
            }
            within!(work, |db| sqlx::query(
                "UPDATE messages SET text = $3, edited_at_ms = $4, rev = $5 WHERE chat_id = $1 AND id = $2"
            )
            .bind(chat_id)
            .bind(id)
            .bind(text)
            .bind(now)
            .bind(head.rev)
            .execute(db)
            .map_ok_drop())?;
            show_as_last(&mut work, chat_id, id, Some(text)).await?;
            work.commit().await?;
            let text = Some(text.to_owned());
            Ok((Message { text, edited_at: Some(now), rev: head.rev, ..message }, true))
        })
        .await
    }

    /// Removes one's own message, or anyone's as owner or admin of a group or channel. What is left
    /// of it; `None` if it was removed before.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`, `not_allowed`.
    pub async fn remove_message(
        &self,
        chat_id: ChatId,
        id: MessageId,
        user_id: UserId,
        now: Timestamp,
    ) -> Result<Option<Message>> {
        timed("remove_message", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, user_id).await?;
            let message = seen(&mut work, chat_id, id, user_id).await?;
            if message.sender_id != user_id {
                permit(head.kind, head.role, Action::RemoveMessage)?;
            }
            if message.removed_at.is_some() {
                return Ok(None);
            }
            within!(work, |db| sqlx::query(
                "UPDATE messages SET text = NULL, reply_to = NULL, removed_at_ms = $3, rev = $4 WHERE chat_id = $1 AND id = $2"
            )
            .bind(chat_id)
            .bind(id)
            .bind(now)
            .bind(head.rev)
            .execute(db)
            .map_ok_drop())?;
            show_as_last(&mut work, chat_id, id, None).await?;
            work.commit().await?;
            Ok(Some(Message { text: None, reply_to: None, removed_at: Some(now), rev: head.rev, ..message }))
        })
        .await
    }
}

/// Ends a page, in the order of reading, at [`PAGE_BYTES_MAX`] of text, after one message at least.
fn cut_to_bytes(rows: &mut Vec<MessageRow>) {
    let mut bytes = 0;
    let fits = |row: &MessageRow| {
        bytes += row.text.as_ref().map_or(0, String::len);
        bytes <= PAGE_BYTES_MAX
    };
    let fitting = rows.iter().map(fits).take_while(|fits| *fits).count();
    rows.truncate(fitting.max(1));
}

/// The message, unless it isn't there or the user removed the history up to it.
async fn seen(work: &mut Work, chat_id: ChatId, id: MessageId, user_id: UserId) -> Result<Message> {
    let row: Option<MessageRow> = within!(work, |db| {
        sqlx::query_as(messages!(
            "AND id = $2 AND id > (SELECT cleared_message_id FROM members WHERE chat_id = $1 AND user_id = $3)"
        ))
        .bind(chat_id)
        .bind(id)
        .bind(user_id)
        .fetch_optional(db)
    })?;
    row.map(Message::from).ok_or(Error::new(Code::MessageNotFound))
}

/// Keeps the inbox's copy of the last message true.
async fn show_as_last(
    work: &mut Work,
    chat_id: ChatId,
    id: MessageId,
    text: Option<&str>,
) -> Result<()> {
    within!(work, |db| sqlx::query(
        "UPDATE chats SET last_text = $3 WHERE id = $1 AND last_message_id = $2"
    )
    .bind(chat_id)
    .bind(id)
    .bind(text.map(snippet))
    .execute(db)
    .map_ok_drop())
}
