//! The directory: users whose login begins with a query, by login; then those whose name alone does, by name.

use super::Service;
use super::chats::cut;
use crate::model::cursor::{self, DirectoryCursor};
use crate::model::limits::{DIRECTORY_READS_MAX, QUERY_CHARS_MAX};
use crate::model::{Error, Result, User, UserId};

/// A page of users, and the cursor behind it if there may be more.
type Page = (Vec<User>, Option<String>);

impl Service {
    /// A page of accounts whose login or name begins with `query`, and the cursor behind it if there may be more. Where a
    /// great many names begin with the query and nearly all of their logins too, a page may be shorter than `limit`, or
    /// empty, and there is more all the same.
    ///
    /// # Errors
    /// `invalid_fields` for a bad cursor or query.
    pub async fn directory(&self, query: Option<&str>, limit: Option<i64>, after: Option<&str>) -> Result<Page> {
        let query = query.unwrap_or_default().trim().to_lowercase();
        if query.contains('\0') || query.chars().count() > QUERY_CHARS_MAX {
            return Err(Error::field("query", format!("has at most {QUERY_CHARS_MAX} characters and no U+0000")));
        }
        let after: Option<DirectoryCursor> = after.map(cursor::decode).transpose()?;
        let limit = self.page("limit", limit)?;

        let login = match after {
            Some(DirectoryCursor::ByName { name_key, user_id }) => {
                let after = (without_nul(name_key)?, user_id);
                return self.by_name(&query, Vec::new(), after, limit).await;
            }
            Some(DirectoryCursor::ByLogin { login }) => Some(without_nul(login)?),
            None => None,
        };
        let mut users = self.store.directory_by_login(&query, login.as_deref(), limit + 1).await?;
        let more = cut(&mut users, limit);
        if more {
            let login = users.last().and_then(|user| user.login.clone()).unwrap_or_default();
            return Ok((users, Some(cursor::encode(&DirectoryCursor::ByLogin { login }))));
        }

        // Every login begins with nothing, so everybody was listed by it.
        if query.is_empty() {
            return Ok((users, None));
        }
        let start = (query.clone(), UserId::default());
        self.by_name(&query, users, start, limit).await
    }

    /// Fills a page with those whose name begins with `query`, and whose login does not: they were listed before.
    ///
    /// A user passed over was listed by login on a page before, so over all pages no more rows are read in vain than were
    /// listed. One page reads [`DIRECTORY_READS_MAX`] times its size at most.
    async fn by_name(
        &self,
        query: &str,
        mut users: Vec<User>,
        mut after: (String, UserId),
        limit: i64,
    ) -> Result<Page> {
        let room = usize::try_from(limit).unwrap_or(usize::MAX);
        let behind = |(name_key, user_id): (String, UserId)| {
            Some(cursor::encode(&DirectoryCursor::ByName { name_key, user_id }))
        };
        for _ in 0..DIRECTORY_READS_MAX {
            let found = self.store.directory_by_name(query, (&after.0, after.1), limit + 1).await?;
            let is_last = found.len() <= room;
            for (user, name_key) in found {
                let is_listed = user.login.as_ref().is_some_and(|login| login.starts_with(query));
                if !is_listed && users.len() == room {
                    return Ok((users, behind(after)));
                }
                after = (name_key, user.id);
                if !is_listed {
                    users.push(user);
                }
            }
            if is_last {
                return Ok((users, None));
            }
        }
        Ok((users, behind(after)))
    }
}

/// Postgres takes no U+0000 in a text, and no cursor of ours has one.
fn without_nul(text: String) -> Result<String> {
    if text.contains('\0') { Err(Error::field("after", "is not a cursor of this list")) } else { Ok(text) }
}
