//! Accounts: creating, reading and changing them.

use sqlx::FromRow;

use super::ended_session::EndedSession;
use super::{MapOkDrop, Store, Work, is_unique_violation, on, timed, within};
use crate::model::{Account, Code, Error, Result, SessionId, Timestamp, User, UserId};

#[derive(FromRow)]
pub(super) struct UserRow {
    id: UserId,
    login: Option<String>,
    name: String,
    created_at_ms: Timestamp,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        Self { id: row.id, login: row.login, name: row.name, created_at: row.created_at_ms }
    }
}

#[derive(FromRow)]
struct AccountRow {
    #[sqlx(flatten)]
    user: UserRow,
    refuse_strangers: bool,
}

impl From<AccountRow> for Account {
    fn from(row: AccountRow) -> Self {
        Self { user: row.user.into(), refuse_strangers: row.refuse_strangers }
    }
}

/// An account to create.
#[derive(Clone)]
pub struct NewUser {
    /// The id that the account gets.
    pub id: UserId,
    /// The login in lower case, which the caller has checked.
    pub login: String,
    /// The name, which the caller has checked and trimmed.
    pub name: String,
    /// The hash of the password in PHC string format.
    pub password_hash: String,
    /// The time of creation.
    pub created_at: Timestamp,
}

/// The changes of an account; a field that is `None` stays as it is.
#[derive(Clone, Default)]
pub struct AccountChange {
    /// The new name, which the caller has checked.
    pub name: Option<String>,
    /// The new login, which the caller has checked.
    pub login: Option<String>,
    /// The hash of the new password, and the session that stays. All other sessions of the user
    /// end.
    pub password: Option<(String, SessionId)>,
    /// Whether users who share no chat with this user are refused when they add the user to a chat.
    pub refuse_strangers: Option<bool>,
    /// The hash against which the caller verified the present password; `None` if this change needs
    /// no password.
    pub confirmed: Option<String>,
}

const INSERT: &str = "\
    INSERT INTO users (id, login, name, name_key, password_hash, created_at_ms) \
    VALUES ($1, $2, $3, $4, $5, $6)";

impl Store {
    /// Creates an account without an invite, for the operator.
    ///
    /// # Errors
    /// `login_taken`.
    pub async fn create_user(&self, user: &NewUser) -> Result<()> {
        timed("create_user", || async {
            let mut work = self.begin().await?;
            insert(&mut work, user).await?;
            work.commit().await
        })
        .await
    }

    /// Creates an account and its first session, and uses an invite once, in one transaction.
    ///
    /// # Errors
    /// `invite_not_found` if the invite is unknown, expired or used up; `login_taken`.
    pub async fn register(
        &self,
        invite: &str,
        user: &NewUser,
        session: &super::NewSession,
    ) -> Result<()> {
        timed("register", || async {
            let mut work = self.begin().await?;
            let consumed = within!(work, |db| sqlx::query_scalar::<_, i64>(
                "UPDATE invites SET uses_left = uses_left - 1
                 WHERE code = $1 AND uses_left > 0 AND expires_at_ms > $2 RETURNING uses_left"
            )
            .bind(invite)
            .bind(user.created_at)
            .fetch_optional(db))?;
            if consumed.is_none() {
                return Err(Code::InviteNotFound.into());
            }

            insert(&mut work, user).await?;
            super::sessions::insert(&mut work, session).await?;
            work.commit().await
        })
        .await
    }

    /// The account with this id, also if it was removed.
    pub async fn user(&self, id: UserId) -> Result<Option<User>> {
        timed("user", || async {
            let row: Option<UserRow> = on!(self.reader(), |db| sqlx::query_as(
                "SELECT id, login, name, created_at_ms FROM users WHERE id = $1"
            )
            .bind(id)
            .fetch_optional(db))?;
            Ok(row.map(User::from))
        })
        .await
    }

    /// The account with this id as its user sees it, also if it was removed.
    pub async fn account(&self, id: UserId) -> Result<Option<Account>> {
        timed("account", || async {
            let row: Option<AccountRow> = on!(self.reader(), |db| {
                sqlx::query_as(
                    "SELECT id, login, name, created_at_ms, refuse_strangers
                     FROM users WHERE id = $1",
                )
                .bind(id)
                .fetch_optional(db)
            })?;
            Ok(row.map(Account::from))
        })
        .await
    }

    /// The id and the password hash of the account with this login.
    pub async fn credentials(&self, login: &str) -> Result<Option<(UserId, String)>> {
        timed("credentials", || async {
            on!(self.session_reader(), |db| sqlx::query_as(
                "SELECT id, password_hash FROM users WHERE login = $1"
            )
            .bind(login)
            .fetch_optional(db))
        })
        .await
    }

    /// The password hash of an account; `None` if it does not exist or was removed.
    pub async fn password_hash(&self, id: UserId) -> Result<Option<String>> {
        timed("password_hash", || async {
            on!(self.session_reader(), |db| sqlx::query_scalar(
                "SELECT password_hash FROM users WHERE id = $1 AND removed_at_ms IS NULL"
            )
            .bind(id)
            .fetch_optional(db))
        })
        .await
    }

    /// Replaces a password hash with a stronger one of the same password, unless the password has
    /// changed since. Returns whether it was replaced.
    pub async fn rehash_password(&self, id: UserId, old: &str, new: &str) -> Result<bool> {
        timed("rehash_password", || async {
            let replaced: Option<UserId> = on!(self.writer(), |db| sqlx::query_scalar(
                "UPDATE users SET password_hash = $3 \
                 WHERE id = $1 AND password_hash = $2 RETURNING id"
            )
            .bind(id)
            .bind(old)
            .bind(new)
            .fetch_optional(db))?;
            Ok(replaced.is_some())
        })
        .await
    }

    /// Whether no account was ever created.
    pub async fn is_empty(&self) -> Result<bool> {
        timed("is_empty", || async {
            let first: Option<UserId> =
                on!(self.reader(), |db| sqlx::query_scalar("SELECT id FROM users LIMIT 1")
                    .fetch_optional(db))?;
            Ok(first.is_none())
        })
        .await
    }

    /// Changes an account. Returns the changed account and the sessions that ended.
    ///
    /// # Errors
    /// `login_taken`. If the account has ended or its password is no longer the confirmed one:
    /// `wrong_password` with `confirmed`, else `not_authenticated`.
    pub async fn change_account(
        &self,
        id: UserId,
        change: &AccountChange,
    ) -> Result<(Account, Vec<EndedSession>)> {
        timed("change_account", || async {
            let mut work = self.begin().await?;
            let row: Option<AccountRow> = within!(work, |db| sqlx::query_as(
                "UPDATE users SET name = COALESCE($2, name), name_key = COALESCE($3, name_key),
                     login = COALESCE($4, login), password_hash = COALESCE($5, password_hash),
                     refuse_strangers = COALESCE($6, refuse_strangers)
                 WHERE id = $1 AND removed_at_ms IS NULL
                   AND password_hash = COALESCE($7, password_hash)
                 RETURNING id, login, name, created_at_ms, refuse_strangers"
            )
            .bind(id)
            .bind(change.name.as_deref())
            .bind(change.name.as_deref().map(str::to_lowercase))
            .bind(change.login.as_deref())
            .bind(change.password.as_ref().map(|(hash, _)| hash.as_str()))
            .bind(change.refuse_strangers)
            .bind(change.confirmed.as_deref())
            .fetch_optional(db))
            .map_err(login_taken)?;

            let missing = match change.confirmed {
                Some(_) => Code::WrongPassword,
                None => Code::NotAuthenticated,
            };
            let account = row.ok_or(Error::new(missing))?.into();
            let ended = match change.password {
                Some((_, kept)) => super::sessions::end_others(&mut work, id, kept).await?,
                None => Vec::new(),
            };
            work.commit().await?;
            Ok((account, ended))
        })
        .await
    }
}

async fn insert(work: &mut Work, user: &NewUser) -> Result<()> {
    within!(work, |db| sqlx::query(INSERT)
        .bind(user.id)
        .bind(user.login.as_str())
        .bind(user.name.as_str())
        .bind(user.name.to_lowercase())
        .bind(user.password_hash.as_str())
        .bind(user.created_at)
        .execute(db)
        .map_ok_drop())
    .map_err(login_taken)
}

fn login_taken(error: Error) -> Error {
    if is_unique_violation(&error) { Code::LoginTaken.into() } else { error }
}
