//! The members of a chat: joining, leaving, roles, read markers.
//!
//! A member who leaves keeps a row with `left_rev`, the tombstone, so that clients that were away
//! learn of it. The cleaning job deletes old tombstones.

use sqlx::FromRow;

use super::chat_limits::check_can_be_added;
use super::chats::{mark_removed, view_within};
use super::head::{Head, role_of};
use super::locks::lock_users;
use super::{MapOkDrop, Store, Work, on, timed, within};
use crate::model::chat::{Action, permit};
use crate::model::user::UserBrief;
use crate::model::{
    Change, ChatEvent, ChatId, ChatKind, Code, Error, Member, MessageId, Result, Rev, Role,
    Timestamp, UserId,
};

#[derive(FromRow)]
pub(super) struct MemberRow {
    user_id: UserId,
    login: Option<String>,
    name: String,
    #[sqlx(try_from = "String")]
    role: Role,
    joined_at_ms: Timestamp,
    pub joined_rev: Rev,
    pub rev: Rev,
    pub left_rev: Option<Rev>,
    last_read_message_id: MessageId,
}

impl From<MemberRow> for Member {
    fn from(row: MemberRow) -> Self {
        Self {
            user: UserBrief { id: row.user_id, login: row.login, name: row.name },
            role: row.role,
            joined_at: row.joined_at_ms,
            last_read_message_id: row.last_read_message_id,
        }
    }
}

impl MemberRow {
    /// The change of this member at `rev`, for a viewer who has the chat up to `known`.
    pub fn change_after(self, known: Rev) -> (Rev, Change) {
        let rev = self.rev;
        let joined_unseen = self.joined_rev > known;
        let left = self.left_rev.is_some();
        let user_id = self.user_id;
        let change = match (left, joined_unseen) {
            (true, _) => Change::MemberLeft(user_id),
            (false, true) => Change::MemberJoined(Box::new((self.into(), None))),
            (false, false) => Change::MemberChanged(self.into()),
        };
        (rev, change)
    }
}

/// Begins a statement with the columns of [`MemberRow`]; the chat is `$1`.
macro_rules! members {
    ($tail:literal) => {
        concat!(
            "SELECT m.user_id, u.login, u.name, m.role, m.joined_at_ms, m.joined_rev, m.rev, \
             m.left_rev, m.last_read_message_id \
             FROM members m JOIN users u ON u.id = m.user_id WHERE m.chat_id = $1 ",
            $tail
        )
    };
}
pub(super) use members;

/// A membership to insert.
struct NewMember {
    pub chat_id: ChatId,
    pub user_id: UserId,
    pub role: Role,
    pub rev: Rev,
    /// The chat's newest message: a new member starts with nothing unread.
    pub last_message_id: MessageId,
    /// Whether another user added the member.
    pub by_others: bool,
}

impl Store {
    /// A page of a chat's members in the order of their ids, after the member `after`. Empty if
    /// `viewer` is not a member: one statement checks that and reads, so a viewer who was removed
    /// sees no member who joined later.
    pub async fn members(
        &self,
        chat_id: ChatId,
        viewer: UserId,
        after: Option<UserId>,
        limit: i64,
    ) -> Result<Vec<Member>> {
        timed("members", || async {
            let rows: Vec<MemberRow> = on!(self.reader(), |db| sqlx::query_as(members!(
                "AND m.left_rev IS NULL AND m.user_id > $2 AND EXISTS ( \
                     SELECT 1 FROM members v \
                     JOIN chats c ON c.id = v.chat_id AND c.removed_at_ms IS NULL \
                     WHERE v.chat_id = $1 AND v.user_id = $4 AND v.left_rev IS NULL) \
                 ORDER BY m.user_id LIMIT $3"
            ))
            .bind(chat_id)
            .bind(after.unwrap_or_default())
            .bind(limit)
            .bind(viewer)
            .fetch_all(db))?;
            Ok(rows.into_iter().map(Member::from).collect())
        })
        .await
    }

    /// Adds a member. `members_max` bounds the members of a group, `chats_max` the chats of the new
    /// member.
    ///
    /// # Errors
    /// `chat_not_found`, `not_allowed`, `wrong_chat_kind`, `user_not_found`, `already_member`,
    /// `member_limit_reached`, `user_unreachable`, `chat_limit_reached`, `not_authenticated` if the
    /// actor's account has ended.
    pub async fn add_member(&self, add: &AddMember) -> Result<ChatEvent> {
        timed("add_member", || async {
            let mut work = self.begin().await?;
            let found = lock_users(&mut work, &[add.actor, add.user_id]).await?;
            if !found.contains(&add.actor) {
                return Err(Code::NotAuthenticated.into());
            }

            let head = Head::lock(&mut work, add.chat_id, add.actor).await?;
            permit(head.kind, head.role, Action::Add(add.role))?;
            if !found.contains(&add.user_id) {
                return Err(Code::UserNotFound.into());
            }
            if role_of(&mut work, add.chat_id, add.user_id).await?.is_some() {
                return Err(Code::AlreadyMember.into());
            }
            if head.kind == ChatKind::Group && head.member_count >= add.members_max {
                return Err(Code::MemberLimit.into());
            }

            check_can_be_added(&mut work, add.actor, &[add.user_id], Some(add.chats_max)).await?;
            let member = NewMember {
                chat_id: add.chat_id,
                user_id: add.user_id,
                role: add.role,
                rev: head.rev,
                last_message_id: head.last_message_id,
                by_others: true,
            };
            insert_member(&mut work, &member, add.now).await?;
            count_members(&mut work, add.chat_id, 1).await?;

            let member = member_within(&mut work, add.chat_id, add.user_id).await?;
            let view = view_within(&mut work, add.chat_id, add.user_id).await?;
            work.commit().await?;
            let change = Change::MemberJoined(Box::new((member, Some(view))));
            Ok(ChatEvent { chat_id: add.chat_id, rev: head.rev, change })
        })
        .await
    }

    /// Gives a member another role. Returns no event if the member has this role already.
    ///
    /// # Errors
    /// `chat_not_found`, `not_allowed`, `wrong_chat_kind`, `member_not_found`, `last_owner`.
    pub async fn change_role(
        &self,
        chat_id: ChatId,
        actor: UserId,
        user_id: UserId,
        role: Role,
    ) -> Result<(Member, Option<ChatEvent>)> {
        timed("change_role", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, actor).await?;
            let target = role_of(&mut work, chat_id, user_id).await?;
            permit(head.kind, head.role, Action::ChangeRole(target.unwrap_or(Role::Member), role))?;
            let target = target.ok_or(Error::new(Code::MemberNotFound))?;

            if target == role {
                return Ok((member_within(&mut work, chat_id, user_id).await?, None));
            }
            if target == Role::Owner && owners(&mut work, chat_id).await? <= 1 {
                return Err(Code::LastOwner.into());
            }

            set_role(&mut work, chat_id, user_id, role, head.rev).await?;
            let member = member_within(&mut work, chat_id, user_id).await?;
            work.commit().await?;
            let event =
                ChatEvent { chat_id, rev: head.rev, change: Change::MemberChanged(member.clone()) };
            Ok((member, Some(event)))
        })
        .await
    }

    /// Removes a member from a chat; with `actor` = `user_id`, the member leaves. If it is the last
    /// member, the chat is removed.
    ///
    /// # Errors
    /// `chat_not_found`, `not_allowed`, `wrong_chat_kind`, `member_not_found`, `last_owner`.
    pub async fn remove_member(
        &self,
        chat_id: ChatId,
        actor: UserId,
        user_id: UserId,
        now: Timestamp,
    ) -> Result<ChatEvent> {
        timed("remove_member", || async {
            let mut work = self.begin().await?;
            let head = Head::lock(&mut work, chat_id, actor).await?;
            let target = role_of(&mut work, chat_id, user_id).await?;
            if actor == user_id {
                if !head.kind.has_membership() {
                    return Err(Code::WrongChatKind.into());
                }
            } else {
                permit(head.kind, head.role, Action::Remove(target.unwrap_or(Role::Member)))?;
            }

            let target = target.ok_or(Error::new(Code::MemberNotFound))?;
            if target == Role::Owner
                && head.member_count > 1
                && owners(&mut work, chat_id).await? <= 1
            {
                return Err(Code::LastOwner.into());
            }

            let event = leave(&mut work, chat_id, user_id, &head, now).await?;
            work.commit().await?;
            Ok(event)
        })
        .await
    }

    /// Moves a member's read marker forward, never back and never past the last message. Returns
    /// the chat's kind and the marker's new position if it moved.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`.
    pub async fn mark_read(
        &self,
        chat_id: ChatId,
        user_id: UserId,
        message_id: MessageId,
    ) -> Result<Option<(ChatKind, MessageId)>> {
        timed("mark_read", || async {
            let not_found = || Error::new(Code::ChatNotFound);
            let access = self.access(chat_id, user_id).await?.ok_or_else(not_found)?;
            if message_id.0 < 0 || message_id > access.last_message_id {
                return Err(Code::MessageNotFound.into());
            }

            let moved: Option<MessageId> = on!(self.writer(), |db| sqlx::query_scalar(
                "UPDATE members SET last_read_message_id = $3
                 WHERE chat_id = $1 AND user_id = $2 AND left_rev IS NULL
                   AND last_read_message_id < $3
                 RETURNING last_read_message_id"
            )
            .bind(chat_id)
            .bind(user_id)
            .bind(message_id)
            .fetch_optional(db))?;
            Ok(moved.map(|marker| (access.kind, marker)))
        })
        .await
    }
}

/// The parameters of [`Store::add_member`].
#[derive(Clone, Debug)]
pub struct AddMember {
    /// The group or channel.
    pub chat_id: ChatId,
    /// The member who adds the user.
    pub actor: UserId,
    /// The user to add.
    pub user_id: UserId,
    /// The new member's role.
    pub role: Role,
    /// The time of joining.
    pub now: Timestamp,
    /// The maximum number of members of a group; a channel has none.
    pub members_max: i64,
    /// The maximum number of chats of the new member.
    pub chats_max: i64,
}

async fn insert_member(work: &mut Work, new: &NewMember, now: Timestamp) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
            "INSERT INTO members
                 (chat_id, user_id, role, joined_at_ms, joined_rev, rev, last_read_message_id,
                  by_others)
             VALUES ($1, $2, $3, $4, $5, $5, $6, $7)
             ON CONFLICT (chat_id, user_id) DO UPDATE SET role = $3, joined_at_ms = $4,
                 joined_rev = $5, rev = $5, left_rev = NULL, left_at_ms = NULL,
                 last_read_message_id = $6, cleared_message_id = 0, hidden = FALSE,
                 by_others = $7",
        )
        .bind(new.chat_id)
        .bind(new.user_id)
        .bind(new.role.as_str())
        .bind(now)
        .bind(new.rev)
        .bind(new.last_message_id)
        .bind(new.by_others)
        .execute(db)
        .map_ok_drop()
    })
}

pub(super) async fn member_within(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
) -> Result<Member> {
    let row: MemberRow = within!(work, |db| sqlx::query_as(members!("AND m.user_id = $2"))
        .bind(chat_id)
        .bind(user_id)
        .fetch_one(db))?;
    Ok(row.into())
}

/// The number of owners of a chat.
pub(super) async fn owners(work: &mut Work, chat_id: ChatId) -> Result<i64> {
    within!(work, |db| sqlx::query_scalar(
        "SELECT COUNT(*) FROM members WHERE chat_id = $1 AND role = 'owner' AND left_rev IS NULL"
    )
    .bind(chat_id)
    .fetch_one(db))
}

pub(super) async fn set_role(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
    role: Role,
    rev: Rev,
) -> Result<()> {
    within!(work, |db| sqlx::query(
        "UPDATE members SET role = $3, rev = $4 WHERE chat_id = $1 AND user_id = $2"
    )
    .bind(chat_id)
    .bind(user_id)
    .bind(role.as_str())
    .bind(rev)
    .execute(db)
    .map_ok_drop())
}

/// Adds `by` to the stored number of members.
async fn count_members(work: &mut Work, chat_id: ChatId, by: i64) -> Result<()> {
    within!(work, |db| sqlx::query(
        "UPDATE chats SET member_count = member_count + $2 WHERE id = $1"
    )
    .bind(chat_id)
    .bind(by)
    .execute(db)
    .map_ok_drop())
}

/// Turns a membership into a tombstone. Removes the chat if it was the last one.
pub(super) async fn leave(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
    head: &Head,
    now: Timestamp,
) -> Result<ChatEvent> {
    within!(work, |db| {
        sqlx::query(
            "UPDATE members SET left_rev = $3, rev = $3, left_at_ms = $4
             WHERE chat_id = $1 AND user_id = $2 AND left_rev IS NULL",
        )
        .bind(chat_id)
        .bind(user_id)
        .bind(head.rev)
        .bind(now)
        .execute(db)
        .map_ok_drop()
    })?;
    count_members(work, chat_id, -1).await?;

    let change = if head.member_count <= 1 {
        mark_removed(work, chat_id, now).await?;
        Change::Removed
    } else {
        Change::MemberLeft(user_id)
    };
    Ok(ChatEvent { chat_id, rev: head.rev, change })
}
