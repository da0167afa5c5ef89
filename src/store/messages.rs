//! Single messages: history, edit, remove. Sending is in [`super::append`].

use sqlx::FromRow;

use super::head::Head;
use super::{MapOkDrop, Store, Work, on, timed, within};
use crate::model::chat::{Action, permit};
use crate::model::limits::PAGE_BYTES_MAX;
use crate::model::text::snippet;
use crate::model::{
    ChatId, Code, Error, Message, MessageBody, MessageId, MessageKind, Result, Rev, Timestamp,
    UserId,
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
            body: MessageBody::from_columns(row.kind, row.text),
            reply_to: row.reply_to,
            client_id: row.client_id,
            sent_at: row.sent_at_ms,
            edited_at: row.edited_at_ms,
            removed_at: row.removed_at_ms,
        }
    }
}

/// Begins a statement with the columns of [`MessageRow`]; the chat is `$1`.
macro_rules! messages {
    ($tail:literal) => {
        concat!(
            "SELECT chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, \
             sent_at_ms, edited_at_ms, removed_at_ms \
             FROM messages WHERE chat_id = $1 ",
            $tail
        )
    };
}
pub(super) use messages;

/// Begins a statement like `messages!`, limited to the messages after the message `$3` that the
/// member `$2` may see. The member is looked up once, before the range is read, and the two lower
/// bounds become one, since SQLite seeks by one lower bound only. For a user who is not a member
/// the bound is `NULL`, so there are no rows.
macro_rules! visible {
    ($tail:literal) => {
        concat!(
            "SELECT chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, \
             sent_at_ms, edited_at_ms, removed_at_ms \
             FROM messages WHERE chat_id = $1 AND id > ( \
                 SELECT CASE WHEN v.cleared_message_id > $3 THEN v.cleared_message_id ELSE $3 END \
                 FROM members v JOIN chats c ON c.id = v.chat_id AND c.removed_at_ms IS NULL \
                 WHERE v.chat_id = $1 AND v.user_id = $2 AND v.left_rev IS NULL) ",
            $tail
        )
    };
}

/// The part of a history to read.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRange {
    /// Only messages after this one, the oldest ones first.
    pub after: Option<MessageId>,
    /// Only messages before this one; the newest ones first unless `after` is given.
    pub before: Option<MessageId>,
    /// The maximum number of messages.
    pub max: i64,
}

impl Store {
    /// A page of a chat's history in ascending order, as far as `viewer` may see it. Empty if
    /// `viewer` is not a member: one statement checks that and reads, so a viewer who was removed
    /// sees no later message. The page has at most `range.max` messages and ends earlier at
    /// [`PAGE_BYTES_MAX`] of text, but has at least one message if there is one.
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

    /// A message; `None` if it does not exist or `viewer` may not see it.
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

    /// Changes the text of a message. Returns the message and whether it changed.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`, `not_allowed` if the user is not the sender,
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

            let message = visible_to(&mut work, chat_id, id, user_id).await?;
            if message.sender_id != user_id {
                return Err(Code::NotAllowed.into());
            }
            permit(head.kind, head.role, Action::Write)?;
            if message.removed_at.is_some() {
                return Err(Code::MessageRemoved.into());
            }
            if message.text() == Some(text) {
                return Ok((message, false));
            }

            within!(work, |db| sqlx::query(
                "UPDATE messages SET text = $3, edited_at_ms = $4, rev = $5 \
                 WHERE chat_id = $1 AND id = $2"
            )
            .bind(chat_id)
            .bind(id)
            .bind(text)
            .bind(now)
            .bind(head.rev)
            .execute(db)
            .map_ok_drop())?;
            set_last_text(&mut work, chat_id, id, Some(text)).await?;
            work.commit().await?;

            let text = Some(text.to_owned());
            let body = text.map(MessageBody::Text);
            Ok((Message { body, edited_at: Some(now), rev: head.rev, ..message }, true))
        })
        .await
    }

    /// Removes a message of the user, or any message if the user is an owner or admin of the group
    /// or channel. Returns the removed message; `None` if it was removed before.
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

            let message = visible_to(&mut work, chat_id, id, user_id).await?;
            if message.sender_id != user_id {
                permit(head.kind, head.role, Action::RemoveMessage)?;
            }
            if message.removed_at.is_some() {
                return Ok(None);
            }

            within!(work, |db| sqlx::query(
                "UPDATE messages SET text = NULL, reply_to = NULL, removed_at_ms = $3, rev = $4 \
                 WHERE chat_id = $1 AND id = $2"
            )
            .bind(chat_id)
            .bind(id)
            .bind(now)
            .bind(head.rev)
            .execute(db)
            .map_ok_drop())?;
            set_last_text(&mut work, chat_id, id, None).await?;
            work.commit().await?;

            let removed_at = Some(now);
            let rev = head.rev;
            Ok(Some(Message { body: None, reply_to: None, removed_at, rev, ..message }))
        })
        .await
    }
}

/// Ends a page at [`PAGE_BYTES_MAX`] of text, but after one message at least. The rows are in the
/// order in which they were read.
fn cut_to_bytes(rows: &mut Vec<MessageRow>) {
    let mut bytes = 0;
    let fits = |row: &MessageRow| {
        bytes += row.text.as_ref().map_or(0, String::len);
        bytes <= PAGE_BYTES_MAX
    };
    let fitting = rows.iter().map(fits).take_while(|fits| *fits).count();
    rows.truncate(fitting.max(1));
}

/// The message. `message_not_found` if it does not exist or is in the history that the user removed
/// for themselves.
async fn visible_to(
    work: &mut Work,
    chat_id: ChatId,
    id: MessageId,
    user_id: UserId,
) -> Result<Message> {
    let row: Option<MessageRow> = within!(work, |db| {
        sqlx::query_as(messages!(
            "AND id = $2 AND id > (SELECT cleared_message_id FROM members \
             WHERE chat_id = $1 AND user_id = $3)"
        ))
        .bind(chat_id)
        .bind(id)
        .bind(user_id)
        .fetch_optional(db)
    })?;
    row.map(Message::from).ok_or(Error::new(Code::MessageNotFound))
}

/// Updates the text that the inbox shows if this is the chat's last message.
async fn set_last_text(
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
