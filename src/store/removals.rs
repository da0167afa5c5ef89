//! The end of an account: at once for its user, and chat by chat for the other members.
//!
//! A user can be a member of thousands of chats. One transaction that left them all would hold all
//! their row locks and exceed the time of a unit of work. So the first unit of work ends the
//! account and records its removal; then each chat is left in a unit of work of its own. Any
//! replica can continue this at any time: a chat that was left before is `chat_not_found`, which is
//! ignored. The user joins no chat in the meantime, since joining requires the user's row lock and
//! an account that has not ended.

use super::ended_session::EndedSession;
use super::head::Head;
use super::locks::lock_user_with_password;
use super::members::{leave, member_within, owners, set_role};
use super::{MapOkDrop, Store, Work, on, timed, within};
use crate::model::user::REMOVED_NAME;
use crate::model::{Change, ChatEvent, ChatId, Code, Result, Rev, Role, Timestamp, UserId};

impl Store {
    /// Ends an account: deletes its sessions and invites, frees its login, replaces its name, and
    /// records its removal so that its chats are left. `confirmed` is the hash against which the
    /// password was verified. Returns the sessions that ended.
    ///
    /// # Errors
    /// `wrong_password` if the account has ended already, or its password has changed.
    pub async fn end_account(
        &self,
        id: UserId,
        confirmed: &str,
        now: Timestamp,
    ) -> Result<Vec<EndedSession>> {
        timed("end_account", || async {
            let mut work = self.begin().await?;
            if !lock_user_with_password(&mut work, id, confirmed).await? {
                return Err(Code::WrongPassword.into());
            }

            let delete = "DELETE FROM sessions WHERE user_id = $1 RETURNING id, token_hash";
            let sessions = within!(work, |db| sqlx::query_as(delete).bind(id).fetch_all(db))?;
            within!(work, |db| sqlx::query("DELETE FROM invites WHERE user_id = $1")
                .bind(id)
                .execute(db)
                .map_ok_drop())?;

            within!(work, |db| sqlx::query(
                "UPDATE users SET login = NULL, name_key = NULL, name = $2, password_hash = '',
                     removed_at_ms = $3
                 WHERE id = $1"
            )
            .bind(id)
            .bind(REMOVED_NAME)
            .bind(now)
            .execute(db)
            .map_ok_drop())?;
            within!(work, |db| sqlx::query(
                "INSERT INTO account_removals (user_id, removed_at_ms) VALUES ($1, $2)"
            )
            .bind(id)
            .bind(now)
            .execute(db)
            .map_ok_drop())?;

            work.commit().await?;
            Ok(sessions)
        })
        .await
    }

    /// Up to `limit` ended accounts with chats that are not left yet, in the order in which they
    /// ended.
    pub async fn pending_removals(&self, limit: i64) -> Result<Vec<UserId>> {
        timed("pending_removals", || async {
            on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT user_id FROM account_removals ORDER BY removed_at_ms, user_id LIMIT $1"
            )
            .bind(limit)
            .fetch_all(db))
        })
        .await
    }

    /// Removes a user whose account has ended from one chat. If the user was the last owner, the
    /// admin who joined first becomes the owner, or without admins the member who joined first: a
    /// chat never stays without an owner.
    ///
    /// # Errors
    /// `chat_not_found` if the user is no longer a member.
    pub async fn depart(
        &self,
        chat_id: ChatId,
        user_id: UserId,
        now: Timestamp,
    ) -> Result<Vec<ChatEvent>> {
        timed("depart", || async {
            let mut work = self.begin().await?;
            let events = depart(&mut work, chat_id, user_id, now).await?;
            work.commit().await?;
            Ok(events)
        })
        .await
    }

    /// Deletes the record of an account's removal if all chats of the account are left.
    pub async fn finish_removal(&self, user_id: UserId) -> Result<()> {
        timed("finish_removal", || async {
            on!(self.writer(), |db| sqlx::query(
                "DELETE FROM account_removals WHERE user_id = $1 AND NOT EXISTS (
                     SELECT 1 FROM members m
                     JOIN chats c ON c.id = m.chat_id AND c.removed_at_ms IS NULL
                     WHERE m.user_id = $1 AND m.left_rev IS NULL
                 )"
            )
            .bind(user_id)
            .execute(db)
            .map_ok_drop())
        })
        .await
    }
}

async fn depart(
    work: &mut Work,
    chat_id: ChatId,
    user_id: UserId,
    now: Timestamp,
) -> Result<Vec<ChatEvent>> {
    let head = Head::lock(work, chat_id, user_id).await?;
    let mut events = vec![leave(work, chat_id, user_id, &head, now).await?];

    let heir_needed =
        head.kind.has_membership() && head.role == Role::Owner && head.member_count > 1;
    if !heir_needed || owners(work, chat_id).await? > 0 {
        return Ok(events);
    }

    let heir: UserId = within!(work, |db| {
        sqlx::query_scalar(
            "SELECT user_id FROM members WHERE chat_id = $1 AND left_rev IS NULL
             ORDER BY role, joined_rev, user_id LIMIT 1",
        )
        .bind(chat_id)
        .fetch_one(db)
    })?;
    let rev: Rev = within!(work, |db| sqlx::query_scalar(
        "UPDATE chats SET rev = rev + 1 WHERE id = $1 RETURNING rev"
    )
    .bind(chat_id)
    .fetch_one(db))?;

    set_role(work, chat_id, heir, Role::Owner, rev).await?;
    let change = Change::MemberChanged(member_within(work, chat_id, heir).await?);
    events.push(ChatEvent { chat_id, rev, change });
    Ok(events)
}
