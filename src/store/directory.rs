//! The directory: accounts by the beginning of their login or name. Each statement reads one range
//! of one index in its order, so the cost of a page does not grow with the number of accounts.

use sqlx::FromRow;

use super::{Store, on, timed};
use crate::model::{Result, Timestamp, User, UserId};

#[derive(FromRow)]
struct NamedRow {
    id: UserId,
    login: Option<String>,
    name: String,
    created_at_ms: Timestamp,
    name_key: String,
}

impl Store {
    /// Up to `limit` accounts whose login begins with `prefix` (lower case), by login, after the
    /// login `after`.
    pub async fn directory_by_login(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<User>> {
        timed("directory_by_login", || async {
            // SQLite seeks by one lower bound only, so `prefix` and `after` become one. No login
            // lies between `after` and the same with U+0001 appended.
            let after = after.map(|after| format!("{after}\u{1}")).unwrap_or_default();
            let start = prefix.max(after.as_str());

            let rows: Vec<super::users::UserRow> = on!(self.reader(), |db| sqlx::query_as(
                "SELECT id, login, name, created_at_ms FROM users \
                 WHERE login >= $1 AND login < $2 ORDER BY login LIMIT $3"
            )
            .bind(start)
            .bind(end_of(prefix))
            .bind(limit)
            .fetch_all(db))?;
            Ok(rows.into_iter().map(User::from).collect())
        })
        .await
    }

    /// Up to `limit` accounts whose name begins with `prefix` (lower case), ordered by name and id,
    /// after this name and id. Each comes with its name in the form that is compared.
    pub async fn directory_by_name(
        &self,
        prefix: &str,
        after: (&str, UserId),
        limit: i64,
    ) -> Result<Vec<(User, String)>> {
        timed("directory_by_name", || async {
            let (name_key, user_id) = after.max((prefix, UserId::default()));
            let rows: Vec<NamedRow> = on!(self.reader(), |db| sqlx::query_as(
                "SELECT id, login, name, created_at_ms, name_key FROM users
                 WHERE (name_key, id) > ($1, $2) AND name_key < $3 ORDER BY name_key, id LIMIT $4"
            )
            .bind(name_key)
            .bind(user_id)
            .bind(end_of(prefix))
            .bind(limit)
            .fetch_all(db))?;

            let user = |NamedRow { id, login, name, created_at_ms, name_key }| {
                (User { id, login, name, created_at: created_at_ms }, name_key)
            };
            Ok(rows.into_iter().map(user).collect())
        })
        .await
    }
}

/// The end of a prefix's range: U+10FFFF sorts after every other character.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}
