//! Invites: codes with which a new user can register.

use sqlx::FromRow;

use super::locks::lock_users;
use super::{Db, MapOkDrop, Store, Work, on, timed, within};
use crate::model::{Code, Result, Timestamp, UserId};

/// An invite, as its creator sees it.
#[derive(Clone, Debug, FromRow)]
pub struct Invite {
    /// The code that the new user enters.
    pub code: String,
    /// The number of registrations that it still allows.
    pub uses_left: i64,
    /// The time from which it is no longer accepted.
    pub expires_at_ms: Timestamp,
    /// The time at which it was created.
    pub created_at_ms: Timestamp,
}

/// The part of an invite that is shown to anyone who has the code.
#[derive(Clone, Debug, FromRow)]
pub struct OpenInvite {
    /// The name of the user who invites; `None` for an invite of the operator.
    pub inviter: Option<String>,
    /// The time from which it is no longer accepted.
    pub expires_at_ms: Timestamp,
}

const INSERT: &str = "\
    INSERT INTO invites (code, user_id, uses_left, expires_at_ms, created_at_ms) \
    VALUES ($1, $2, $3, $4, $5)";

async fn insert(work: &mut Work, invite: &Invite, user_id: Option<UserId>) -> Result<()> {
    within!(work, |db| sqlx::query(INSERT)
        .bind(invite.code.as_str())
        .bind(user_id)
        .bind(invite.uses_left)
        .bind(invite.expires_at_ms)
        .bind(invite.created_at_ms)
        .execute(db)
        .map_ok_drop())
}

impl Store {
    /// Creates an invite for `user_id`, or for the operator, who has no limit.
    ///
    /// # Errors
    /// `invite_limit_reached` if the user has `open_max` open invites, `not_authenticated` if the
    /// user's account has ended.
    pub async fn create_invite(
        &self,
        invite: &Invite,
        user_id: Option<UserId>,
        open_max: i64,
    ) -> Result<()> {
        timed("create_invite", || async {
            let mut work = self.begin().await?;
            if let Some(user_id) = user_id {
                if lock_users(&mut work, &[user_id]).await?.is_empty() {
                    return Err(Code::NotAuthenticated.into());
                }

                let open: i64 = within!(work, |db| sqlx::query_scalar(
                    "SELECT COUNT(*) FROM invites \
                     WHERE user_id = $1 AND uses_left > 0 AND expires_at_ms > $2"
                )
                .bind(user_id)
                .bind(invite.created_at_ms)
                .fetch_one(db))?;
                if open >= open_max {
                    return Err(Code::InviteLimit.into());
                }
            }

            insert(&mut work, invite, user_id).await?;
            work.commit().await
        })
        .await
    }

    /// The open invites of a user, newest first.
    pub async fn invites(
        &self,
        user_id: UserId,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<Invite>> {
        timed("invites", || async {
            on!(self.reader(), |db| {
                sqlx::query_as(
                    "SELECT code, uses_left, expires_at_ms, created_at_ms FROM invites
                     WHERE user_id = $1 AND uses_left > 0 AND expires_at_ms > $2
                     ORDER BY created_at_ms DESC, code LIMIT $3",
                )
                .bind(user_id)
                .bind(now)
                .bind(limit)
                .fetch_all(db)
            })
        })
        .await
    }

    /// The newest open invite of the operator for one use. If there is none, `new` is created.
    /// Replicas that start at the same moment get the same invite.
    pub async fn first_invite(&self, new: Invite) -> Result<Invite> {
        timed("first_invite", || async {
            let mut work = self.begin().await?;
            if matches!(self.writer, Db::Postgres(_)) {
                let lock = "LOCK TABLE invites IN SHARE ROW EXCLUSIVE MODE";
                within!(work, |db| sqlx::query(lock).execute(db).map_ok_drop())?;
            }

            let open: Option<Invite> = within!(work, |db| sqlx::query_as(
                "SELECT code, uses_left, expires_at_ms, created_at_ms FROM invites
                 WHERE user_id IS NULL AND uses_left = 1 AND expires_at_ms > $1
                 ORDER BY created_at_ms DESC LIMIT 1"
            )
            .bind(new.created_at_ms)
            .fetch_optional(db))?;
            if let Some(open) = open {
                return Ok(open);
            }

            insert(&mut work, &new, None).await?;
            work.commit().await?;
            Ok(new.clone())
        })
        .await
    }

    /// The public part of an open invite.
    pub async fn open_invite(&self, code: &str, now: Timestamp) -> Result<Option<OpenInvite>> {
        timed("open_invite", || async {
            on!(self.reader(), |db| sqlx::query_as(
                "SELECT u.name AS inviter, i.expires_at_ms
                 FROM invites i LEFT JOIN users u ON u.id = i.user_id
                 WHERE i.code = $1 AND i.uses_left > 0 AND i.expires_at_ms > $2"
            )
            .bind(code)
            .bind(now)
            .fetch_optional(db))
        })
        .await
    }

    /// Revokes a user's invite. Returns whether it existed.
    pub async fn revoke_invite(&self, user_id: UserId, code: &str) -> Result<bool> {
        timed("revoke_invite", || async {
            let revoked: Option<String> = on!(self.writer(), |db| sqlx::query_scalar(
                "DELETE FROM invites WHERE code = $1 AND user_id = $2 RETURNING code"
            )
            .bind(code)
            .bind(user_id)
            .fetch_optional(db))?;
            Ok(revoked.is_some())
        })
        .await
    }
}
