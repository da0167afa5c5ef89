//! What the store does wrong under the mutants of [`faults`](crate::model::faults). No release
//! contains this module.
//!
//! [`Store::append_numbered_first`] assigns ids and revs that are visible before the commit that
//! writes the message, as those of a sequence are. So a later message can be visible before an
//! earlier one.

use std::time::Duration;

use super::append_checked::{Attempted, message};
use super::append_postgres::Locks;
use super::{Db, MapOkDrop, Store, Work, on, within};
use crate::model::message::{Draft, Sent};
use crate::model::{MessageId, Result, Rev, Timestamp};

/// One draft at a time for a sender in a chat, so that a repeated `client_id` is found before an id
/// is assigned.
const SENDER_LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
const EARLIER: &str =
    "SELECT id FROM messages WHERE chat_id = $1 AND sender_id = $2 AND client_id = $3";

const PLACE: &str = "
    UPDATE chats SET rev = rev + 1, last_message_id = last_message_id + 1
    WHERE id = $1 AND removed_at_ms IS NULL AND EXISTS (
        SELECT 1 FROM members m
        WHERE m.chat_id = chats.id AND m.user_id = $2 AND m.left_rev IS NULL)
    RETURNING last_message_id, rev";
const MESSAGE: &str = "
    INSERT INTO messages
        (chat_id, id, rev, sent_rev, sender_id, kind, text, reply_to, client_id, fingerprint,
         sent_at_ms)
    VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10)";
const HEAD: &str = "
    UPDATE chats SET last_sender_id = $3, last_text = $4, last_kind = $5, last_sent_at_ms = $6,
        activity_at_ms = $6
    WHERE id = $1 AND last_message_id = $2";
const MARKER: &str = "
    UPDATE members SET last_read_message_id = $3
    WHERE chat_id = $1 AND user_id = $2 AND last_read_message_id < $3";
/// The time between id and commit of every third message: longer than a hub waits before it heals
/// a gap.
const COMMIT_DELAY: Duration = Duration::from_millis(80);

impl Store {
    /// Acknowledges all drafts; [`Store::append_checked`] then does not commit some of them.
    pub(super) async fn append_and_drop(
        &self,
        drafts: &[Draft],
        now: Timestamp,
    ) -> Result<Attempted> {
        self.append_checked(drafts, now, true, Locks::Wait).await
    }

    /// Sends drafts one by one. Drafts that this fault does not apply to are sent correctly.
    pub(super) async fn append_numbered_first(
        &self,
        drafts: &[Draft],
        now: Timestamp,
    ) -> Result<Attempted> {
        let mut appended = Attempted::new();
        for draft in drafts {
            appended.push(match self.assign_then_write(draft, now).await? {
                Some(sent) => Some(Ok(sent)),
                None => self
                    .append_checked(std::slice::from_ref(draft), now, true, Locks::Wait)
                    .await?
                    .remove(0),
            });
        }
        Ok(appended)
    }

    async fn assign_then_write(&self, draft: &Draft, now: Timestamp) -> Result<Option<Sent>> {
        let mut work = self.begin().await?;
        if matches!(self.writer, Db::Sqlite(_))
            || draft.reply_to.is_some()
            || was_sent(&mut work, draft).await?
        {
            return Ok(None);
        }

        let assigned: Option<(MessageId, Rev)> = on!(self.writer(), |db| sqlx::query_as(PLACE)
            .bind(draft.chat_id)
            .bind(draft.sender_id)
            .fetch_optional(db))?;
        let Some((id, rev)) = assigned else { return Ok(None) };
        if id.0 % 3 == 0 {
            tokio::time::sleep(COMMIT_DELAY).await;
        }
        fill(&mut work, draft, (id, rev), now).await?;
        work.commit().await?;
        Ok(Some(Sent::New(message(draft, id, rev, now))))
    }
}

/// Whether the draft's `client_id` was sent before. Takes the sender's lock.
async fn was_sent(work: &mut Work, draft: &Draft) -> Result<bool> {
    let Some(client_id) = draft.client_id.as_deref() else { return Ok(false) };
    let key = format!("{}{}", draft.chat_id, draft.sender_id);
    within!(work, |db| sqlx::query(SENDER_LOCK).bind(key).execute(db).map_ok_drop())?;

    let earlier: Option<MessageId> = within!(work, |db| sqlx::query_scalar(EARLIER)
        .bind(draft.chat_id)
        .bind(draft.sender_id)
        .bind(client_id)
        .fetch_optional(db))?;
    Ok(earlier.is_some())
}

/// Writes the message, the chat's head and the sender's read marker.
async fn fill(
    work: &mut Work,
    draft: &Draft,
    (id, rev): (MessageId, Rev),
    now: Timestamp,
) -> Result<()> {
    let (chat_id, sender_id, kind) = (draft.chat_id, draft.sender_id, draft.body.kind().as_str());
    within!(work, |db| sqlx::query(MESSAGE)
        .bind(chat_id)
        .bind(id)
        .bind(rev)
        .bind(sender_id)
        .bind(kind)
        .bind(draft.body.text())
        .bind(draft.reply_to)
        .bind(draft.client_id.as_deref())
        .bind(draft.client_id.as_ref().map(|_| draft.fingerprint()))
        .bind(now)
        .execute(db)
        .map_ok_drop())?;
    within!(work, |db| sqlx::query(HEAD)
        .bind(chat_id)
        .bind(id)
        .bind(sender_id)
        .bind(draft.body.snippet())
        .bind(kind)
        .bind(now)
        .execute(db)
        .map_ok_drop())?;
    within!(work, |db| sqlx::query(MARKER)
        .bind(chat_id)
        .bind(sender_id)
        .bind(id)
        .execute(db)
        .map_ok_drop())
}
