//! Chats: making, showing, renaming, removing them; the inbox.

use sqlx::FromRow;

use super::head::Head;
use super::{MapOkDrop, Store, Work, on, on_ids, timed, within};
use crate::model::chat::{Action, permit};
use crate::model::cursor::InboxCursor;
use crate::model::user::UserBrief;
use crate::model::{
    Chat, ChatId, ChatKind, LastMessage, MessageId, MessageKind, Result, Rev, Role, Timestamp,
    UserId,
};

/// What a member may see and do in a chat.
#[derive(Clone, Debug, FromRow)]
pub struct Access {
    /// The chat's kind.
    #[sqlx(try_from = "String")]
    pub kind: ChatKind,
    /// The member's role.
    #[sqlx(try_from = "String")]
    pub role: Role,
    /// The member removed the history up to here, for themselves.
    pub cleared_message_id: MessageId,
    /// The newest message.
    pub last_message_id: MessageId,
    /// The chat's revision.
    pub rev: Rev,
}

/// A chat of a user, with what `sync` needs to know of the membership.
#[derive(Clone, Debug)]
pub struct ChatToSync {
    /// The chat as the user sees it.
    pub chat: Chat,
    /// The revision at which the user joined.
    pub joined_rev: Rev,
    /// The user removed the history up to here, for themselves.
    pub cleared_message_id: MessageId,
    /// Whether it is in the user's list: not if they removed it and nothing was sent since.
    pub listed: bool,
}

/// The columns of [`ViewRow`]; the caller's membership is `m`.
macro_rules! view {
    ($tail:literal) => {
        concat!(
            "SELECT c.id, c.kind, c.name, c.created_at_ms, c.rev, c.member_count, c.activity_at_ms, c.last_message_id, \
             c.last_sender_id, c.last_text, c.last_kind, c.last_sent_at_ms, m.role, m.last_read_message_id, m.joined_rev, \
             m.cleared_message_id, m.hidden, p.id AS peer_id, p.login AS peer_login, p.name AS peer_name \
             FROM members m JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL \
             LEFT JOIN users p ON p.id = CASE WHEN c.self_user IS NOT NULL THEN c.self_user \
                                              WHEN c.pair_low = m.user_id THEN c.pair_high ELSE c.pair_low END \
             WHERE m.left_rev IS NULL AND m.user_id = $1 ",
            $tail
        )
    };
}

#[derive(FromRow)]
struct ViewRow {
    id: ChatId,
    #[sqlx(try_from = "String")]
    kind: ChatKind,
    name: Option<String>,
    created_at_ms: Timestamp,
    rev: Rev,
    member_count: i64,
    activity_at_ms: i64,
    last_message_id: MessageId,
    last_sender_id: Option<UserId>,
    last_text: Option<String>,
    last_kind: Option<String>,
    last_sent_at_ms: Option<Timestamp>,
    #[sqlx(try_from = "String")]
    role: Role,
    last_read_message_id: MessageId,
    joined_rev: Rev,
    cleared_message_id: MessageId,
    hidden: bool,
    peer_id: Option<UserId>,
    peer_login: Option<String>,
    peer_name: Option<String>,
}

impl From<ViewRow> for Chat {
    fn from(row: ViewRow) -> Self {
        let shown = row.last_message_id > row.cleared_message_id;
        let last = row.last_sender_id.zip(row.last_sent_at_ms).filter(|_| shown).map(
            |(sender_id, sent_at)| LastMessage {
                id: row.last_message_id,
                sender_id,
                text: row.last_text,
                sent_at,
                kind: row
                    .last_kind
                    .and_then(|kind| kind.try_into().ok())
                    .unwrap_or(MessageKind::Text),
            },
        );
        let peer_name = row.peer_name.unwrap_or_default();
        let peer = row.peer_id.filter(|_| row.kind == ChatKind::Private);
        Self {
            id: row.id,
            kind: row.kind,
            name: row.name.unwrap_or_else(|| peer_name.clone()),
            created_at: row.created_at_ms,
            rev: row.rev,
            last_message_at: last.as_ref().map(|last| last.sent_at),
            last_message_id: row.last_message_id,
            last_message: last,
            unread_count: Some((row.last_message_id.0 - row.last_read_message_id.0).max(0)),
            last_read_message_id: Some(row.last_read_message_id),
            role: Some(row.role),
            member_count: row.member_count,
            peer: peer.map(|id| UserBrief { id, login: row.peer_login, name: peer_name }),
        }
    }
}

impl Store {
    /// Chats of a user, last activity first, from after the cursor. With each: the cursor behind
    /// it.
    pub async fn inbox(
        &self,
        user_id: UserId,
        after: Option<InboxCursor>,
        limit: i64,
    ) -> Result<Vec<(Chat, InboxCursor)>> {
        timed("inbox", || async {
            let after = after.unwrap_or(InboxCursor { activity_ms: i64::MAX, chat_id: ChatId(uuid::Uuid::max()) });
            let rows: Vec<ViewRow> = on!(self.reader(), |db| sqlx::query_as(view!(
                "AND (NOT m.hidden OR c.last_message_id > m.cleared_message_id) AND (c.activity_at_ms, c.id) < ($2, $3) \
                 ORDER BY c.activity_at_ms DESC, c.id DESC LIMIT $4"
            ))
            .bind(user_id)
            .bind(after.activity_ms)
            .bind(after.chat_id)
            .bind(limit)
            .fetch_all(db))?;
            let cursor = |row: &ViewRow| InboxCursor { activity_ms: row.activity_at_ms, chat_id: row.id };
            Ok(rows.into_iter().map(|row| (cursor(&row), row)).map(|(cursor, row)| (row.into(), cursor)).collect())
        })
        .await
    }

    /// The ids and revisions of all chats of a user.
    pub async fn chat_heads(&self, user_id: UserId) -> Result<Vec<(ChatId, Rev)>> {
        timed("chat_heads", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT c.id, c.rev FROM members m JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.user_id = $1 AND m.left_rev IS NULL"
            )
            .bind(user_id)
            .fetch_all(db))
        })
        .await
    }

    /// How many chats each of these users has; users without any are left out.
    pub async fn chat_counts(&self, users: &[UserId]) -> Result<Vec<(UserId, usize)>> {
        timed("chat_counts", || async {
            let counts: Vec<(UserId, i64)> = on_ids!(
                self.reader(),
                query_as,
                "SELECT m.user_id, COUNT(*) FROM members m JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.user_id = ANY($1) AND m.left_rev IS NULL GROUP BY m.user_id",
                users,
                |query, db| query.fetch_all(db)
            )?;
            Ok(counts.into_iter().map(|(id, count)| (id, usize::try_from(count).unwrap_or(0))).collect())
        })
        .await
    }

    /// All chats of a user in no order, hidden ones too: what `sync` starts from. The limit of
    /// chats per user bounds them.
    pub async fn chats_to_sync(&self, user_id: UserId) -> Result<Vec<ChatToSync>> {
        timed("chats_to_sync", || async {
            let rows: Vec<ViewRow> =
                on!(self.reader(), |db| sqlx::query_as(view!("")).bind(user_id).fetch_all(db))?;
            let to_sync = |row: ViewRow| ChatToSync {
                joined_rev: row.joined_rev,
                cleared_message_id: row.cleared_message_id,
                listed: !row.hidden || row.last_message_id > row.cleared_message_id,
                chat: row.into(),
            };
            Ok(rows.into_iter().map(to_sync).collect())
        })
        .await
    }

    /// A chat as one of its members sees it.
    pub async fn chat(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<Chat>> {
        timed("chat", || async {
            let row: Option<ViewRow> =
                on!(self.reader(), |db| sqlx::query_as(view!("AND m.chat_id = $2"))
                    .bind(user_id)
                    .bind(chat_id)
                    .fetch_optional(db))?;
            Ok(row.map(Chat::from))
        })
        .await
    }

    /// What a user may see and do in a chat; `None` if they are no member.
    pub async fn access(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<Access>> {
        timed("access", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT c.kind, m.role, m.cleared_message_id, c.last_message_id, c.rev FROM members m
                 JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.chat_id = $1 AND m.user_id = $2 AND m.left_rev IS NULL"
            )
            .bind(chat_id)
            .bind(user_id)
            .fetch_optional(db))
        })
        .await
    }

    /// Gives a group or channel another name. `None` if it has that name already.
    ///
    /// # Errors
    /// `chat_not_found`, `not_allowed`, `wrong_chat_kind`.
    pub async fn rename_chat(
        &self,
        chat_id: ChatId,
        user_id: UserId,
        name: &str,
    ) -> Result<Option<Chat>> {
        timed("rename_chat", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, user_id).await?;
            permit(head.kind, head.role, Action::Rename)?;
            let renamed: Option<ChatId> = within!(work, |db| sqlx::query_scalar(
                "UPDATE chats SET name = $2, renamed_rev = rev WHERE id = $1 AND name <> $2 RETURNING id"
            )
            .bind(chat_id)
            .bind(name)
            .fetch_optional(db))?;
            if renamed.is_none() {
                return Ok(None);
            }
            let chat = view_within(&mut work, chat_id, user_id).await?;
            work.commit().await?;
            Ok(Some(chat))
        })
        .await
    }

    /// Removes a group or channel for all, or the history of a self or private chat for the caller
    /// alone. Returns the rev of the removal for all; the job clears what is left of it.
    ///
    /// # Errors
    /// `chat_not_found`, `not_allowed`.
    pub async fn remove_chat(
        &self,
        chat_id: ChatId,
        user_id: UserId,
        now: Timestamp,
    ) -> Result<Option<Rev>> {
        timed("remove_chat", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, user_id).await?;
            if !head.kind.has_membership() {
                drop(work);
                return self.clear_history(chat_id, user_id).await.map(|()| None);
            }
            permit(head.kind, head.role, Action::RemoveChat)?;
            mark_removed(&mut work, chat_id, now).await?;
            work.commit().await?;
            Ok(Some(head.rev))
        })
        .await
    }

    /// Hides everything up to now from one member. No change of the chat for anyone else, so no
    /// rev. A send of this member may come in between and know of a later message: neither marker
    /// moves back.
    async fn clear_history(&self, chat_id: ChatId, user_id: UserId) -> Result<()> {
        on!(self.writer(), |db| {
            sqlx::query(
            "UPDATE members SET hidden = TRUE,
                 cleared_message_id = CASE WHEN cleared_message_id < c.last_message_id
                     THEN c.last_message_id ELSE cleared_message_id END,
                 last_read_message_id = CASE WHEN last_read_message_id < c.last_message_id
                     THEN c.last_message_id ELSE last_read_message_id END
             FROM chats c WHERE c.id = $1 AND members.chat_id = $1 AND members.user_id = $2 AND left_rev IS NULL"
        )
        .bind(chat_id)
        .bind(user_id)
        .execute(db)
        .map_ok_drop()
        })
    }
}

/// The chat as a member sees it from inside the unit of work.
pub(super) async fn view_within(work: &mut Work, chat_id: ChatId, user_id: UserId) -> Result<Chat> {
    let row: ViewRow = within!(work, |db| sqlx::query_as(view!("AND m.chat_id = $2"))
        .bind(user_id)
        .bind(chat_id)
        .fetch_one(db))?;
    Ok(row.into())
}

/// Nobody sees the chat any more; the job clears what is left of it. The members' rows stay as they
/// are until then, since a channel may have more of them than one transaction can write: whatever
/// counts memberships looks at the chat.
pub(super) async fn mark_removed(work: &mut Work, chat_id: ChatId, now: Timestamp) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
            "UPDATE chats SET removed_at_ms = $2, self_user = NULL, pair_low = NULL, pair_high = NULL WHERE id = $1",
        )
        .bind(chat_id)
        .bind(now)
        .execute(db)
        .map_ok_drop()
    })
}
