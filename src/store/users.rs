//! Accounts.

use sqlx::FromRow;

use super::sessions::EndedSession;
use super::{MapOkDrop, Store, Tx, Work, ended, failure, id_list, is_unique_violation, on, on_lease, timed, within};
use crate::model::{Code, Error, Result, SessionId, Timestamp, User, UserId};

#[derive(FromRow)]
struct UserRow {
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

/// An account to be made.
#[derive(Clone)]
pub struct NewUser {
    /// Its id.
    pub id: UserId,
    /// Checked, in lower case.
    pub login: String,
    /// Checked and trimmed.
    pub name: String,
    /// In PHC string format.
    pub password_hash: String,
    /// Now.
    pub created_at: Timestamp,
}

/// What to change of an account; `None` leaves it.
#[derive(Clone, Default)]
pub struct AccountChange {
    /// A checked name.
    pub name: Option<String>,
    /// A checked login.
    pub login: Option<String>,
    /// The hash of a new password. All sessions but the named one end with the old one.
    pub password: Option<(String, SessionId)>,
}

const INSERT: &str =
    "INSERT INTO users (id, login, name, name_key, password_hash, created_at_ms) VALUES ($1, $2, $3, $4, $5, $6)";

impl Store {
    /// Makes an account without an invite, for the operator.
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

    /// Makes an account, consuming one use of an invite, and its first session, all or nothing.
    ///
    /// # Errors
    /// `invite_not_found` if the invite is unknown, expired or used up; `login_taken`.
    pub async fn register(&self, invite: &str, user: &NewUser, session: &super::NewSession) -> Result<()> {
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

    /// The account with this id, removed or not.
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

    /// The id and password hash behind a login.
    pub async fn credentials(&self, login: &str) -> Result<Option<(UserId, String)>> {
        timed("credentials", || async {
            on!(self.reader(), |db| sqlx::query_as("SELECT id, password_hash FROM users WHERE login = $1")
                .bind(login)
                .fetch_optional(db))
        })
        .await
    }

    /// The password hash of an account.
    pub async fn password_hash(&self, id: UserId) -> Result<Option<String>> {
        timed("password_hash", || async {
            on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT password_hash FROM users WHERE id = $1 AND removed_at_ms IS NULL"
            )
            .bind(id)
            .fetch_optional(db))
        })
        .await
    }

    /// Replaces a password hash by a stronger one of the same password, unless the password changed meanwhile.
    pub async fn rehash_password(&self, id: UserId, old: &str, new: &str) -> Result<()> {
        timed("rehash_password", || async {
            on!(self.writer(), |db| sqlx::query(
                "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2"
            )
            .bind(id)
            .bind(old)
            .bind(new)
            .execute(db)
            .map_ok_drop())
        })
        .await
    }

    /// Whether nobody has registered yet.
    pub async fn is_empty(&self) -> Result<bool> {
        timed("is_empty", || async {
            let first: Option<UserId> =
                on!(self.reader(), |db| sqlx::query_scalar("SELECT id FROM users LIMIT 1").fetch_optional(db))?;
            Ok(first.is_none())
        })
        .await
    }

    /// Up to `limit` accounts whose login or name begins with `prefix` (lower case), by login, after the login `after`.
    pub async fn directory(&self, prefix: &str, after: &str, limit: i64) -> Result<Vec<User>> {
        timed("directory", || async {
            // U+10FFFF sorts behind everything, so the range holds just what begins with the prefix.
            let end = format!("{prefix}\u{10FFFF}");
            let rows: Vec<UserRow> = on!(self.reader(), |db| sqlx::query_as(
                "SELECT id, login, name, created_at_ms FROM users
                 WHERE ((login >= $1 AND login < $2) OR (name_key >= $1 AND name_key < $2)) AND login > $3
                 ORDER BY login LIMIT $4"
            )
            .bind(prefix)
            .bind(end.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(db))?;
            Ok(rows.into_iter().map(User::from).collect())
        })
        .await
    }

    /// Changes an account. Returns it as it is now, and the sessions that ended.
    ///
    /// # Errors
    /// `login_taken`, `not_authenticated` if the account has ended.
    pub async fn change_account(&self, id: UserId, change: &AccountChange) -> Result<(User, Vec<EndedSession>)> {
        timed("change_account", || async {
            let mut work = self.begin().await?;
            let row: Option<UserRow> = within!(work, |db| sqlx::query_as(
                "UPDATE users SET name = COALESCE($2, name), name_key = COALESCE($3, name_key), login = COALESCE($4, login),
                 password_hash = COALESCE($5, password_hash) WHERE id = $1 AND removed_at_ms IS NULL
                 RETURNING id, login, name, created_at_ms"
            )
            .bind(id)
            .bind(change.name.as_deref())
            .bind(change.name.as_deref().map(str::to_lowercase))
            .bind(change.login.as_deref())
            .bind(change.password.as_ref().map(|(hash, _)| hash.as_str()))
            .fetch_optional(db))
            .map_err(login_taken)?;
            let user = row.ok_or(Error::new(Code::NotAuthenticated))?.into();
            let ended = match change.password {
                Some((_, kept)) => super::sessions::end_others(&mut work, id, kept).await?,
                None => Vec::new(),
            };
            work.commit().await?;
            Ok((user, ended))
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

/// Locks these accounts in the order of their ids, so that what is counted per user stays exact. Users are locked
/// before chats, everywhere. Returns those that exist and are not removed.
pub(super) async fn lock_users(work: &mut Work, ids: &[UserId]) -> Result<Vec<UserId>> {
    let mut sorted: Vec<UserId> = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    work.count_statement();
    match &mut work.inner {
        Tx::Postgres(lease) => {
            let ids: Vec<uuid::Uuid> = sorted.iter().map(|id| id.0).collect();
            on_lease!(lease, |db| sqlx::query_scalar(
                "SELECT id FROM users WHERE id = ANY($1) AND removed_at_ms IS NULL ORDER BY id FOR NO KEY UPDATE",
            )
            .bind(ids)
            .fetch_all(db))
        }
        // SQLite has one writer, and this transaction is it.
        Tx::Sqlite(tx) => {
            let sql =
                "SELECT id FROM users WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND removed_at_ms IS NULL
                       ORDER BY id";
            sqlx::query_scalar(sql).bind(id_list(&sorted)).fetch_all(&mut **tx).await.map_err(failure)
        }
        Tx::Ended => Err(ended()),
    }
}
