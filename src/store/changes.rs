//! What changed in a chat after a revision: the way back in sync after any absence, and how a hub
//! heals a gap.
//!
//! There is no second log. Messages and members carry the `rev` that last changed them, so an item
//! that changed several times comes once, with its latest state.

use std::collections::HashMap;

use super::members::{MemberRow, members};
use super::messages::{MessageRow, messages};
use super::{Store, Work, on, on_ids, timed, within};
use crate::model::limits::MEMBERS_AT_ONCE_MAX;
use crate::model::{Change, Chat, ChatId, ChatKind, Message, MessageId, Result, Rev, UserId};

/// Items that can share one rev: the first members of a chat, and the chat itself.
#[expect(clippy::cast_possible_wrap, reason = "a hundred")]
const SHARED_REV_MAX: i64 = MEMBERS_AT_ONCE_MAX as i64 + 2;

/// One item that changed, by the revision that changed it last.
pub type ChangeItem = (Rev, Change);

/// From where changes are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// What the viewer knew at first: a message sent after it is new to them.
    pub known: Rev,
    /// What they were told meanwhile; changes after it are read.
    pub told: Rev,
    /// Of whom changes of the membership are read: of all members, or of this one alone.
    pub only_member: Option<UserId>,
}

impl From<Rev> for Since {
    fn from(known: Rev) -> Self {
        Self { known, told: known, only_member: None }
    }
}

/// What changed in a chat after a revision.
#[derive(Debug)]
pub struct Changes {
    /// Oldest change first; each item once.
    pub items: Vec<ChangeItem>,
    /// Messages among them that were sent after that revision and changed since: by which revision
    /// they were sent.
    pub sent_earlier: HashMap<MessageId, Rev>,
    /// How far this goes: the chat's revision, or the last item's where there was no room for all.
    pub rev: Rev,
    /// Whether it goes to the chat's revision.
    pub complete: bool,
    /// Whether changes before these are forgotten, so that the caller must start anew.
    pub forgotten: bool,
    /// Since when the viewer is a member; `None` without a viewer.
    pub joined_rev: Option<Rev>,
    /// The chat's kind.
    pub kind: ChatKind,
    /// How many members the chat has at its present revision, which is [`Changes::rev`] if that is
    /// complete.
    pub member_count: i64,
    /// The viewer removed the history up to here, for themselves; 0 without a viewer.
    pub cleared_message_id: MessageId,
}

impl Changes {
    /// Ends the page at so many bytes of text, after one item at least, and says so in `rev` and
    /// `complete`.
    pub fn cut_to_bytes(&mut self, bytes_max: usize) {
        let mut bytes = 0;
        let fits = |(_, change): &ChangeItem| {
            bytes += match change {
                Change::MessageSent(it)
                | Change::MessageEdited(it)
                | Change::MessageRemoved(it) => it.text.as_ref().map_or(0, String::len),
                _ => 0,
            };
            bytes <= bytes_max
        };
        let mut room = self.items.iter().map(fits).take_while(|fits| *fits).count().max(1);
        // Items that share a rev come on one page, or the rest would be lost.
        while room < self.items.len() && self.items[room].0 == self.items[room - 1].0 {
            room += 1;
        }
        if room < self.items.len() {
            self.items.truncate(room);
            self.rev = self.items[room - 1].0;
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
    /// Up to `max` items of a chat that changed since then, in one snapshot. `None` if the chat is
    /// gone, or the viewer is no member at that moment. A changed name comes as the chat that
    /// `viewer` sees, without what is theirs alone.
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
                "SELECT kind, member_count, rev, renamed_rev, forgotten_rev FROM chats WHERE id = $1 AND removed_at_ms IS NULL"
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
            if head.renamed_rev > since.told {
                // Any member's view will do: what differs between members is left out.
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
            let mut room = usize::try_from(max).unwrap_or(0);
            // A chat's first members share its first rev: they come on one page, or the rest would
            // be lost.
            while room > 0 && room < items.len() && items[room].0 == items[room - 1].0 {
                room += 1;
            }
            let complete = items.len() <= room;
            items.truncate(room);
            let rev = if complete { head.rev } else { items.last().map_or(since.told, |(rev, _)| *rev) };
            let forgotten = since.told.0 > 0 && since.told < head.forgotten_rev;
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

    /// Whether more than `max` messages of a chat changed after a revision; with `members`,
    /// messages and members.
    pub async fn has_more_changes(
        &self,
        chat_id: ChatId,
        known: Rev,
        members: bool,
        max: i64,
    ) -> Result<bool> {
        timed("has_more_changes", || async {
            // Each count ends where it is enough: a client may be a million changes behind.
            let count: i64 = on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT (SELECT COUNT(*) FROM messages WHERE chat_id = $1 AND rev > $2 AND rev <= COALESCE( \
                    (SELECT rev FROM messages WHERE chat_id = $1 AND rev > $2 ORDER BY rev LIMIT 1 OFFSET $3), $4)) \
                 + (SELECT COUNT(*) FROM members WHERE $5 AND chat_id = $1 AND rev > $2 AND rev <= COALESCE( \
                    (SELECT rev FROM members WHERE chat_id = $1 AND rev > $2 ORDER BY rev LIMIT 1 OFFSET $3), $4))"
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

    /// The revisions of these chats, as far as they are there.
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

/// Messages and members that changed since then: at least the first `max` of both together, and all
/// that share the last one's rev, in no order.
async fn items_after(
    work: &mut Work,
    chat_id: ChatId,
    Since { known, told, only_member }: Since,
    max: i64,
) -> Result<(Vec<ChangeItem>, HashMap<MessageId, Rev>)> {
    let messages: Vec<MessageRow> =
        within!(work, |db| sqlx::query_as(messages!("AND rev > $2 ORDER BY rev LIMIT $3"))
            .bind(chat_id)
            .bind(told)
            // No two messages share a rev; one more tells whether these are all.
            .bind(max + 1)
            .fetch_all(db))?;
    let members: Vec<MemberRow> = match only_member {
        None => {
            within!(work, |db| sqlx::query_as(members!("AND m.rev > $2 ORDER BY m.rev LIMIT $3"))
                .bind(chat_id)
                .bind(told)
                .bind(max + SHARED_REV_MAX)
                .fetch_all(db))?
        }
        Some(user_id) => {
            within!(work, |db| sqlx::query_as(members!("AND m.rev > $2 AND m.user_id = $3"))
                .bind(chat_id)
                .bind(told)
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
        "SELECT joined_rev, cleared_message_id FROM members WHERE chat_id = $1 AND user_id = $2 AND left_rev IS NULL"
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
