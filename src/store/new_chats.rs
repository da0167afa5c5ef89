//! Creating chats, or finding the existing one.

use super::chat_limits::{check_can_be_added, check_chat_limit};
use super::chats::view_within;
use super::locks::lock_users;
use super::{MapOkDrop, Store, Tx, Work, ended, failure, id_list, on_lease, timed, within};
use crate::model::{Chat, ChatId, ChatKind, Code, Error, Result, Role, Timestamp, UserId};

/// A chat to create.
#[derive(Clone, Debug)]
pub struct NewChat {
    /// The id that the chat gets unless it exists already.
    pub id: ChatId,
    /// The kind of the chat and its other members.
    pub kind: Creation,
    /// The user who creates the chat, and owns it unless it is private.
    pub creator: UserId,
    /// The time of creation.
    pub now: Timestamp,
    /// The maximum number of chats of the creator by their own act. For a group or channel, also
    /// the maximum number of all chats of each other member.
    pub chats_max: i64,
}

/// The kind of a new chat and its other members.
#[derive(Clone, Debug)]
pub enum Creation {
    /// The creator's chat with themselves.
    SelfChat,
    /// The chat of the creator and this user.
    Private(UserId),
    /// A group or channel.
    Shared {
        /// The kind: group or channel.
        kind: ChatKind,
        /// The chat's name, which the caller has checked.
        name: String,
        /// The other members from the start.
        members: Vec<UserId>,
    },
}

/// The result of [`Store::create_chat`].
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a request")]
pub enum Opened {
    /// The chat was created. Each first member with the chat as that member sees it.
    New(Vec<(UserId, Chat)>),
    /// The self chat, or the private chat of the two users, existed already.
    Found {
        /// The chat as the creator sees it.
        chat: Chat,
        /// Whether the chat was not in the creator's inbox: the creator had removed it, and no
        /// message was sent since.
        was_unlisted: bool,
    },
}

impl Store {
    /// Creates a chat, or finds the existing self or private chat.
    ///
    /// # Errors
    /// `invalid_fields` with `member_ids` for users that do not exist, `user_unreachable`,
    /// `chat_limit_reached`, `not_authenticated` if the creator's account has ended.
    pub async fn create_chat(&self, new: &NewChat) -> Result<Opened> {
        timed("create_chat", || async {
            let mut work = self.begin().await?;
            let others: &[UserId] = match &new.kind {
                Creation::SelfChat => &[],
                Creation::Private(peer) => std::slice::from_ref(peer),
                Creation::Shared { members, .. } => members,
            };

            let wanted: Vec<UserId> = others.iter().copied().chain([new.creator]).collect();
            let found = lock_users(&mut work, &wanted).await?;
            if !found.contains(&new.creator) {
                return Err(Code::NotAuthenticated.into());
            }
            if let Some(position) = others.iter().position(|id| !found.contains(id)) {
                let field = format!("member_ids[{position}]");
                return Err(Error::field(field, "is not the id of an existing user"));
            }

            if !insert_chat(&mut work, new, wanted.len()).await? {
                let found = reopen(&mut work, new).await?;
                work.commit().await?;
                return Ok(found);
            }

            check_chat_limit(&mut work, new.creator, new.chats_max).await?;
            if !others.is_empty() {
                // A private chat does not count the peer's own chats: a user with many chats can
                // still be written to.
                let altogether_max =
                    matches!(new.kind, Creation::Shared { .. }).then_some(new.chats_max);
                check_can_be_added(&mut work, new.creator, others, altogether_max).await?;
            }

            insert_first_members(&mut work, new, &wanted).await?;
            let views = first_views(&mut work, new, wanted).await?;
            work.commit().await?;
            Ok(Opened::New(views))
        })
        .await
    }
}

/// Inserts the chat's row, unless the self or private chat exists. Returns whether it was inserted.
async fn insert_chat(work: &mut Work, new: &NewChat, member_count: usize) -> Result<bool> {
    let (kind, name, self_user, pair) = match &new.kind {
        Creation::SelfChat => (ChatKind::SelfChat, None, Some(new.creator), None),
        Creation::Private(peer) => {
            (ChatKind::Private, None, None, Some(ordered(new.creator, *peer)))
        }
        Creation::Shared { kind, name, .. } => (*kind, Some(name.as_str()), None, None),
    };

    let inserted: Option<ChatId> = within!(work, |db| {
        sqlx::query_scalar(
            "INSERT INTO chats
                 (id, kind, name, self_user, pair_low, pair_high, created_at_ms, activity_at_ms,
                  rev, renamed_rev, member_count)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, 1, 1, $8)
             ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(new.id)
        .bind(kind.as_str())
        .bind(name)
        .bind(self_user)
        .bind(pair.map(|(low, _)| low))
        .bind(pair.map(|(_, high)| high))
        .bind(new.now)
        .bind(i64::try_from(member_count).unwrap_or(i64::MAX))
        .fetch_optional(db)
    })?;
    Ok(inserted.is_some())
}

/// Inserts the first members of a new chat. The creator becomes its owner unless it is private.
async fn insert_first_members(work: &mut Work, new: &NewChat, users: &[UserId]) -> Result<()> {
    let role = if matches!(new.kind, Creation::Private(_)) { Role::Member } else { Role::Owner };
    work.count_statement();
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let sql = "INSERT INTO members
                           (chat_id, user_id, role, joined_at_ms, joined_rev, rev,
                            last_read_message_id, by_others)
                       SELECT $1, u.user_id, CASE WHEN u.user_id = $3 THEN $4 ELSE $5 END, $6, 1, 1,
                           0, u.user_id <> $3
                       FROM UNNEST($2::uuid[]) AS u (user_id) ORDER BY u.user_id";
            let ids: Vec<uuid::Uuid> = users.iter().map(|id| id.0).collect();
            on_lease!(lease, |db| sqlx::query(sql)
                .bind(new.id)
                .bind(ids)
                .bind(new.creator)
                .bind(role.as_str())
                .bind(Role::Member.as_str())
                .bind(new.now)
                .execute(db)
                .map_ok_drop())
        }
        Tx::Sqlite(tx) => {
            let sql = "INSERT INTO members
                           (chat_id, user_id, role, joined_at_ms, joined_rev, rev,
                            last_read_message_id, by_others)
                       SELECT $1, unhex(u.value), CASE WHEN unhex(u.value) = $3 THEN $4 ELSE $5 END,
                           $6, 1, 1, 0, unhex(u.value) <> $3 FROM json_each($2) u";
            sqlx::query(sql)
                .bind(new.id)
                .bind(id_list(users.iter().map(|id| id.0)))
                .bind(new.creator)
                .bind(role.as_str())
                .bind(Role::Member.as_str())
                .bind(new.now)
                .execute(&mut **tx)
                .map_ok_drop()
                .await
                .map_err(failure)
        }
        Tx::Ended => Err(ended()),
    }
}

/// Finds the existing self or private chat, and puts it back into the creator's inbox if the
/// creator had removed it.
async fn reopen(work: &mut Work, new: &NewChat) -> Result<Opened> {
    let (self_user, pair) = match new.kind {
        Creation::Private(peer) => (None, Some(ordered(new.creator, peer))),
        _ => (Some(new.creator), None),
    };

    let chat_id: ChatId = within!(work, |db| {
        sqlx::query_scalar(
            "SELECT id FROM chats WHERE self_user = $1
             UNION ALL SELECT id FROM chats WHERE pair_low = $2 AND pair_high = $3",
        )
        .bind(self_user)
        .bind(pair.map(|(low, _)| low))
        .bind(pair.map(|(_, high)| high))
        .fetch_one(db)
    })?;

    // A hidden chat may be in the inbox nevertheless: a message that was sent since put it back.
    let was_off: Option<bool> = within!(work, |db| {
        sqlx::query_scalar(
            "UPDATE members SET hidden = FALSE WHERE chat_id = $1 AND user_id = $2 AND hidden
             RETURNING (SELECT last_message_id FROM chats WHERE id = $1) <= cleared_message_id",
        )
        .bind(chat_id)
        .bind(new.creator)
        .fetch_optional(db)
    })?;

    let chat = view_within(work, chat_id, new.creator).await?;
    Ok(Opened::Found { chat, was_unlisted: was_off.unwrap_or(false) })
}

fn ordered(a: UserId, b: UserId) -> (UserId, UserId) {
    if a < b { (a, b) } else { (b, a) }
}

/// A new chat as each first member sees it. In a group or channel the views differ only by the
/// role.
async fn first_views(
    work: &mut Work,
    new: &NewChat,
    members: Vec<UserId>,
) -> Result<Vec<(UserId, Chat)>> {
    let mine = view_within(work, new.id, new.creator).await?;
    let mut views = Vec::with_capacity(members.len());
    for user_id in members {
        let view = match new.kind {
            _ if user_id == new.creator => mine.clone(),
            Creation::Shared { .. } => Chat { role: Some(Role::Member), ..mine.clone() },
            Creation::SelfChat | Creation::Private(_) => view_within(work, new.id, user_id).await?,
        };
        views.push((user_id, view));
    }
    Ok(views)
}
