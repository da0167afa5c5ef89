//! Chats: reading, renaming and removing them; the inbox.

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

/// A member's rights in a chat, and the positions that limit what the member can read.
#[derive(Clone, Debug, FromRow)]
pub struct Access {
    /// The chat's kind, which decides with the role what the member is allowed to do.
    #[sqlx(try_from = "String")]
    pub kind: ChatKind,
    /// The member's role in this chat.
    #[sqlx(try_from = "String")]
    pub role: Role,
    /// The last message of the history that the member has removed for themselves; 0 if none.
    pub cleared_message_id: MessageId,
    /// The newest message of the chat; 0 if there is none.
    pub last_message_id: MessageId,
    /// The chat's revision when this was read.
    pub rev: Rev,
}

/// A chat of a user, with the fields of the membership that `sync` needs.
#[derive(Clone, Debug)]
pub struct ChatToSync {
    /// The chat as the user sees it.
    pub chat: Chat,
    /// The revision at which the user joined.
    pub joined_rev: Rev,
    /// The last message of the history that the user has removed for themselves; 0 if none.
    pub cleared_message_id: MessageId,
    /// Whether the chat is in the user's inbox: a chat that the user removed is not, until the next
    /// message is sent.
    pub listed: bool,
}

/// Begins a statement with the columns of [`ViewRow`]; the caller's membership is `m`.
macro_rules! view {
    ($tail:literal) => {
        concat!(
            "SELECT c.id, c.kind, c.name, c.created_at_ms, c.rev, c.member_count, \
             c.activity_at_ms, c.last_message_id, c.last_sender_id, c.last_text, c.last_kind, \
             c.last_sent_at_ms, m.role, m.last_read_message_id, m.joined_rev, \
             m.cleared_message_id, m.hidden, \
             p.id AS peer_id, p.login AS peer_login, p.name AS peer_name \
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
    /// Up to `limit` chats of a user's inbox after the cursor, the last active first. Each comes
    /// with the cursor from which the next page continues.
    pub async fn inbox(
        &self,
        user_id: UserId,
        after: Option<InboxCursor>,
        limit: i64,
    ) -> Result<Vec<(Chat, InboxCursor)>> {
        timed("inbox", || async {
            let first = InboxCursor { activity_ms: i64::MAX, chat_id: ChatId(uuid::Uuid::max()) };
            let after = after.unwrap_or(first);
            let rows: Vec<ViewRow> = on!(self.reader(), |db| sqlx::query_as(view!(
                "AND (NOT m.hidden OR c.last_message_id > m.cleared_message_id) \
                 AND (c.activity_at_ms, c.id) < ($2, $3) \
                 ORDER BY c.activity_at_ms DESC, c.id DESC LIMIT $4"
            ))
            .bind(user_id)
            .bind(after.activity_ms)
            .bind(after.chat_id)
            .bind(limit)
            .fetch_all(db))?;

            let with_cursor = |row: ViewRow| {
                let cursor = InboxCursor { activity_ms: row.activity_at_ms, chat_id: row.id };
                (Chat::from(row), cursor)
            };
            Ok(rows.into_iter().map(with_cursor).collect())
        })
        .await
    }

    /// The ids and revisions of all chats of a user, in no order.
    pub async fn chat_heads(&self, user_id: UserId) -> Result<Vec<(ChatId, Rev)>> {
        timed("chat_heads", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT c.id, c.rev FROM members m
                 JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.user_id = $1 AND m.left_rev IS NULL"
            )
            .bind(user_id)
            .fetch_all(db))
        })
        .await
    }

    /// The number of chats of each of these users; users without any are left out.
    pub async fn chat_counts(&self, users: &[UserId]) -> Result<Vec<(UserId, usize)>> {
        timed("chat_counts", || async {
            let counts: Vec<(UserId, i64)> = on_ids!(
                self.reader(),
                query_as,
                "SELECT m.user_id, COUNT(*) FROM members m
                 JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.user_id = ANY($1) AND m.left_rev IS NULL GROUP BY m.user_id",
                users,
                |query, db| query.fetch_all(db)
            )?;
            let counted =
                |(id, count): (UserId, i64)| (id, usize::try_from(count).unwrap_or_default());
            Ok(counts.into_iter().map(counted).collect())
        })
        .await
    }

    /// All chats of a user, also those removed from the inbox, in no order. The maximum number of
    /// chats of a user bounds them.
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

    /// A chat as its member `user_id` sees it; `None` if the user is not a member.
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

    /// A user's rights in a chat; `None` if the user is not a member.
    pub async fn access(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<Access>> {
        timed("access", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT c.kind, m.role, m.cleared_message_id, c.last_message_id, c.rev
                 FROM members m
                 JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                 WHERE m.chat_id = $1 AND m.user_id = $2 AND m.left_rev IS NULL"
            )
            .bind(chat_id)
            .bind(user_id)
            .fetch_optional(db))
        })
        .await
    }

    /// Gives a group or channel another name. `None` if the chat has that name already.
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
                "UPDATE chats SET name = $2, renamed_rev = rev \
                 WHERE id = $1 AND name <> $2 RETURNING id"
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

    /// Removes a group or channel for all its members, or the history of a self or private chat for
    /// the caller. Returns the rev of a removal for all. The cleaning job then deletes the chat's
    /// rows.
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

    /// Removes the history up to now for one member. The chat does not change for its other
    /// members, so it gets no new rev. This member may send a message at the same moment, which
    /// advances the markers further: neither marker moves back.
    async fn clear_history(&self, chat_id: ChatId, user_id: UserId) -> Result<()> {
        on!(self.writer(), |db| {
            sqlx::query(
                "UPDATE members SET hidden = TRUE,
                     cleared_message_id = CASE WHEN cleared_message_id < c.last_message_id
                         THEN c.last_message_id ELSE cleared_message_id END,
                     last_read_message_id = CASE WHEN last_read_message_id < c.last_message_id
                         THEN c.last_message_id ELSE last_read_message_id END
                 FROM chats c WHERE c.id = $1 AND members.chat_id = $1 AND members.user_id = $2
                   AND left_rev IS NULL",
            )
            .bind(chat_id)
            .bind(user_id)
            .execute(db)
            .map_ok_drop()
        })
    }
}

/// The chat as a member sees it, read inside the unit of work.
pub(super) async fn view_within(work: &mut Work, chat_id: ChatId, user_id: UserId) -> Result<Chat> {
    let row: ViewRow = within!(work, |db| sqlx::query_as(view!("AND m.chat_id = $2"))
        .bind(user_id)
        .bind(chat_id)
        .fetch_one(db))?;
    Ok(row.into())
}

/// Marks a chat as removed for all. The cleaning job deletes its rows later: a channel may have
/// more members than one transaction can delete in time. So every statement that counts memberships
/// must check that the chat is not removed.
pub(super) async fn mark_removed(work: &mut Work, chat_id: ChatId, now: Timestamp) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
            "UPDATE chats SET removed_at_ms = $2, self_user = NULL, pair_low = NULL, \
             pair_high = NULL WHERE id = $1",
        )
        .bind(chat_id)
        .bind(now)
        .execute(db)
        .map_ok_drop()
    })
}
