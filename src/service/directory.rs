//! The directory: first the users whose login begins with a query, by login, then the users of whom
//! only the name begins with it, by name.

use super::page;
use crate::model::cursor::{self, DirectoryCursor};
use crate::model::limits::{DIRECTORY_READS_MAX, QUERY_CHARS_MAX};
use crate::model::{Error, Result, User, UserId};
use crate::store::Store;

/// A page of users, and the cursor of the next page; `None` on the last page.
type Page = (Vec<User>, Option<String>);

/// The service for the directory.
pub struct Directory {
    pub(super) store: Store,
    pub(super) page_max: i64,
}

impl Directory {
    /// A page of the users whose login or name begins with `query`. A page may be shorter than
    /// `limit`, or empty, although another page follows. This happens if the names and the logins
    /// of very many users begin with the query.
    ///
    /// # Errors
    /// `invalid_fields` for a bad cursor or query.
    pub async fn search(
        &self,
        query: Option<&str>,
        limit: Option<i64>,
        after: Option<&str>,
    ) -> Result<Page> {
        let query = query.unwrap_or_default().trim().to_lowercase();
        if query.contains('\0') || query.chars().count() > QUERY_CHARS_MAX {
            return Err(Error::field(
                "query",
                format!("has at most {QUERY_CHARS_MAX} characters and no U+0000"),
            ));
        }

        let after: Option<DirectoryCursor> = after.map(cursor::decode).transpose()?;
        let limit = page::size("limit", limit, self.page_max)?;

        let login = match after {
            Some(DirectoryCursor::ByName { name_key, user_id }) => {
                let after = (without_nul(name_key)?, user_id);
                return self.by_name(&query, Vec::new(), after, limit).await;
            }
            Some(DirectoryCursor::ByLogin { login }) => Some(without_nul(login)?),
            None => None,
        };

        let mut users = self.store.directory_by_login(&query, login.as_deref(), limit + 1).await?;
        let more = page::cut(&mut users, limit);
        if more {
            let login = users.last().and_then(|user| user.login.clone()).unwrap_or_default();
            return Ok((users, Some(cursor::encode(&DirectoryCursor::ByLogin { login }))));
        }

        // Every login begins with the empty query, so the pages by login contain all users.
        if query.is_empty() {
            return Ok((users, None));
        }
        let start = (query.clone(), UserId::default());
        self.by_name(&query, users, start, limit).await
    }

    /// Fills a page with users whose name begins with `query` and whose login does not. Skips the
    /// users whose login begins with `query`: earlier pages contain them. So all pages together
    /// skip at most as many rows as they list. One page makes at most [`DIRECTORY_READS_MAX`] reads
    /// of its size.
    async fn by_name(
        &self,
        query: &str,
        mut users: Vec<User>,
        mut after: (String, UserId),
        limit: i64,
    ) -> Result<Page> {
        let users_max = usize::try_from(limit).unwrap_or(usize::MAX);
        let cursor_after = |(name_key, user_id): (String, UserId)| {
            Some(cursor::encode(&DirectoryCursor::ByName { name_key, user_id }))
        };

        for _ in 0..DIRECTORY_READS_MAX {
            let found = self.store.directory_by_name(query, (&after.0, after.1), limit + 1).await?;
            let is_last = found.len() <= users_max;
            for (user, name_key) in found {
                let is_listed = user.login.as_ref().is_some_and(|login| login.starts_with(query));
                if !is_listed && users.len() == users_max {
                    return Ok((users, cursor_after(after)));
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
        Ok((users, cursor_after(after)))
    }
}

/// Refuses U+0000: Postgres does not accept it in a text, and no cursor of this server contains it.
fn without_nul(text: String) -> Result<String> {
    if text.contains('\0') {
        Err(Error::field("after", "is not a cursor of this list"))
    } else {
        Ok(text)
    }
}
