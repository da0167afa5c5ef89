//! The changes of a chat after a revision: `sync` reads them after an absence, and a hub to heal a
//! gap.
//!
//! There is no second log. Messages and members carry the `rev` of their last change, so an item
//! that changed several times appears once, in its latest state.

use std::collections::HashMap;

use super::members::{MemberRow, members};
use super::messages::{MessageRow, messages};
use super::{Store, Work, on, on_ids, timed, within};
use crate::model::limits::MEMBERS_AT_ONCE_MAX;
use crate::model::{Change, Chat, ChatId, ChatKind, Message, MessageId, Result, Rev, UserId};

/// Items that can share one rev: the first members of a chat, and its name.
#[expect(clippy::cast_possible_wrap, reason = "a hundred")]
const SHARED_REV_MAX: i64 = MEMBERS_AT_ONCE_MAX as i64 + 2;

/// An item that changed, with the revision of its last change.
pub type ChangeItem = (Rev, Change);

/// The revisions from which changes are read.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// The revision that the viewer had at the start. A message sent after it is new to the
    /// viewer.
    pub known: Rev,
    /// The revision up to which the viewer has received changes. Changes after it are read.
    pub delivered: Rev,
    /// The only member whose changes of membership are read; `None` for all members.
    pub only_member: Option<UserId>,
}

impl From<Rev> for Since {
    fn from(known: Rev) -> Self {
        Self { known, delivered: known, only_member: None }
    }
}

/// The changes of a chat after a revision.
#[derive(Debug)]
pub struct Changes {
    /// The changed items in the order of their revisions, each once.
    pub items: Vec<ChangeItem>,
    /// For the messages among them that were sent after [`Since::known`] and changed later: the
    /// revision at which they were sent.
    pub sent_earlier: HashMap<MessageId, Rev>,
    /// The revision that these changes reach: the chat's, or the last item's if there are more
    /// changes.
    pub rev: Rev,
    /// Whether [`Changes::rev`] is the chat's revision.
    pub complete: bool,
    /// Whether some of the changes are no longer stored, so that the caller must start anew.
    pub forgotten: bool,
    /// The revision at which the viewer joined; `None` without a viewer.
    pub joined_rev: Option<Rev>,
    /// The chat's kind: with the number of members, it decides how a hub announces joins.
    pub kind: ChatKind,
    /// The number of members at the chat's revision, which is [`Changes::rev`] if these are
    /// complete.
    pub member_count: i64,
    /// The last message of the history that the viewer has removed for themselves; 0 without a
    /// viewer.
    pub cleared_message_id: MessageId,
}

impl Changes {
    /// Ends the page at `bytes_max` bytes of text, but after one item at least. Adjusts `rev` and
    /// `complete`.
    pub fn cut_to_bytes(&mut self, bytes_max: usize) {
        let mut bytes = 0;
        let fits = |(_, change): &ChangeItem| {
            bytes += match change {
                Change::MessageSent(it)
                | Change::MessageEdited(it)
                | Change::MessageRemoved(it) => it.text().map_or(0, str::len),
                _ => 0,
            };
            bytes <= bytes_max
        };

        let mut kept = self.items.iter().map(fits).take_while(|fits| *fits).count().max(1);
        // Items that share a rev stay on one page: the next page begins after that rev.
        while kept < self.items.len() && self.items[kept].0 == self.items[kept - 1].0 {
            kept += 1;
        }
        if kept < self.items.len() {
            self.items.truncate(kept);
            self.rev = self.items[kept - 1].0;
            self.complete = false;
        }
    }
}

#[derive(Clone, Copy, sqlx::FromRow)]
struct MembershipRow {
    joined_rev: Rev,
    cleared_message_id: MessageId,
}

#[derive(sqlx::FromRow)]
struct HeadRow {
    #[sqlx(try_from = "String")]
    kind: ChatKind,
    member_count: i64,
    rev: Rev,
    renamed_rev: Rev,
    forgotten_rev: Rev,
}

impl Store {
    /// Up to `max` items of a chat that changed after `since`, in one snapshot. `None` if the chat
    /// does not exist, or the viewer is not a member of it in this snapshot. A changed name is
    /// reported as a chat without the fields that differ between its members.
    pub async fn changes(
        &self,
        chat_id: ChatId,
        viewer: Option<UserId>,
        since: impl Into<Since>,
        max: i64,
    ) -> Result<Option<Changes>> {
        let since = since.into();
        timed("changes", || async {
            let mut work = self.snapshot().await?;
            let head: Option<HeadRow> = within!(work, |db| sqlx::query_as(
                "SELECT kind, member_count, rev, renamed_rev, forgotten_rev FROM chats \
                 WHERE id = $1 AND removed_at_ms IS NULL"
            )
            .bind(chat_id)
            .fetch_optional(db))?;
            let Some(head) = head else { return Ok(None) };
            let membership = match viewer {
                Some(viewer) => match membership(&mut work, chat_id, viewer).await? {
                    Some(membership) => Some(membership),
                    None => return Ok(None),
                },
                None => None,
            };

            let (mut items, sent_earlier) = items_after(&mut work, chat_id, since, max).await?;
            if head.renamed_rev > since.delivered {
                // The view of any member serves, since the fields that differ are left out.
                let viewer = match viewer {
                    Some(viewer) => Some(viewer),
                    None => any_member(&mut work, chat_id).await?,
                };
                if let Some(viewer) = viewer {
                    let chat: Chat = super::chats::view_within(&mut work, chat_id, viewer).await?;
                    items.push((head.renamed_rev, Change::Renamed(chat.for_all())));
                }
            }

            items.sort_by_key(|(rev, _)| *rev);
            let mut kept = usize::try_from(max).unwrap_or(0);
            // Items that share a rev, such as a chat's first members, stay on one page: the next
            // page begins after that rev.
            while kept > 0 && kept < items.len() && items[kept].0 == items[kept - 1].0 {
                kept += 1;
            }
            let complete = items.len() <= kept;
            items.truncate(kept);

            let last_rev = items.last().map_or(since.delivered, |(rev, _)| *rev);
            let rev = if complete { head.rev } else { last_rev };
            let forgotten = since.delivered.0 > 0 && since.delivered < head.forgotten_rev;
            let joined_rev = membership.map(|it| it.joined_rev);
            let cleared_message_id = membership.map(|it| it.cleared_message_id).unwrap_or_default();
            let HeadRow { kind, member_count, .. } = head;
            Ok(Some(Changes {
                items,
                sent_earlier,
                rev,
                complete,
                forgotten,
                joined_rev,
                kind,
                member_count,
                cleared_message_id,
            }))
        })
        .await
    }

    /// Whether more than `max` messages of a chat changed after a revision. With `members`, changed
    /// members count as well.
    pub async fn has_more_changes(
        &self,
        chat_id: ChatId,
        known: Rev,
        members: bool,
        max: i64,
    ) -> Result<bool> {
        timed("has_more_changes", || async {
            // Each count stops above `max`: a client may be a million changes behind.
            let count: i64 = on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT (SELECT COUNT(*) FROM messages \
                 WHERE chat_id = $1 AND rev > $2 AND rev <= COALESCE( \
                    (SELECT rev FROM messages WHERE chat_id = $1 AND rev > $2 \
                     ORDER BY rev LIMIT 1 OFFSET $3), $4)) \
                 + (SELECT COUNT(*) FROM members \
                 WHERE $5 AND chat_id = $1 AND rev > $2 AND rev <= COALESCE( \
                    (SELECT rev FROM members WHERE chat_id = $1 AND rev > $2 \
                     ORDER BY rev LIMIT 1 OFFSET $3), $4))"
            )
            .bind(chat_id)
            .bind(known)
            .bind(max)
            .bind(i64::MAX)
            .bind(members)
            .fetch_one(db))?;
            Ok(count > max)
        })
        .await
    }

    /// The revisions of these chats. Chats that do not exist are left out.
    pub async fn revs(&self, chats: &[ChatId]) -> Result<Vec<(ChatId, Rev)>> {
        timed("revs", || async {
            on_ids!(
                self.reader(),
                query_as,
                "SELECT id, rev FROM chats WHERE id = ANY($1) AND removed_at_ms IS NULL",
                chats,
                |query, db| query.fetch_all(db)
            )
        })
        .await
    }
}

/// Messages and members that changed after `delivered`, in no order: at least the first `max` of
/// both together, and all that share the last one's rev.
async fn items_after(
    work: &mut Work,
    chat_id: ChatId,
    Since { known, delivered, only_member }: Since,
    max: i64,
) -> Result<(Vec<ChangeItem>, HashMap<MessageId, Rev>)> {
    let messages: Vec<MessageRow> =
        within!(work, |db| sqlx::query_as(messages!("AND rev > $2 ORDER BY rev LIMIT $3"))
            .bind(chat_id)
            .bind(delivered)
            // No two messages share a rev, so one more row shows whether there are more.
            .bind(max + 1)
            .fetch_all(db))?;
    let members: Vec<MemberRow> = match only_member {
        None => {
            within!(work, |db| sqlx::query_as(members!("AND m.rev > $2 ORDER BY m.rev LIMIT $3"))
                .bind(chat_id)
                .bind(delivered)
                .bind(max + SHARED_REV_MAX)
                .fetch_all(db))?
        }
        Some(user_id) => {
            within!(work, |db| sqlx::query_as(members!("AND m.rev > $2 AND m.user_id = $3"))
                .bind(chat_id)
                .bind(delivered)
                .bind(user_id)
                .fetch_all(db))?
        }
    };

    let mut items: Vec<ChangeItem> = Vec::with_capacity(messages.len() + members.len());
    let mut sent_earlier = HashMap::new();
    for row in messages {
        let (rev, sent_rev) = (row.rev, row.sent_rev);
        let message: Message = row.into();
        if sent_rev > known && sent_rev < rev {
            sent_earlier.insert(message.id, sent_rev);
        }
        items.push((rev, Change::of_message(message, sent_rev <= known)));
    }
    items.extend(members.into_iter().map(|row| row.change_after(known)));
    Ok((items, sent_earlier))
}

async fn membership(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
) -> Result<Option<MembershipRow>> {
    within!(work, |db| {
        sqlx::query_as(
            "SELECT joined_rev, cleared_message_id FROM members \
             WHERE chat_id = $1 AND user_id = $2 AND left_rev IS NULL",
        )
        .bind(chat_id)
        .bind(user_id)
        .fetch_optional(db)
    })
}

async fn any_member(work: &mut Work, chat_id: ChatId) -> Result<Option<UserId>> {
    within!(work, |db| sqlx::query_scalar(
        "SELECT user_id FROM members WHERE chat_id = $1 AND left_rev IS NULL LIMIT 1"
    )
    .bind(chat_id)
    .fetch_optional(db))
}
