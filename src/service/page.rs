//! Pages of lists: how many entries a page has, and whether another page follows.

use crate::model::limits::PAGE;
use crate::model::{Error, Result};

/// The number of entries of a page: `asked`, at most `page_max`; [`PAGE`] if the client does not
/// say.
///
/// # Errors
/// `invalid_fields` naming `field` if `asked` is less than 1.
pub(super) fn size(field: &str, asked: Option<i64>, page_max: i64) -> Result<i64> {
    match asked {
        Some(asked) if asked < 1 => Err(Error::field(field, "must be at least 1")),
        Some(asked) => Ok(asked.min(page_max)),
        None => Ok(page_max.min(PAGE)),
    }
}

/// Cuts a list to `limit` entries. Callers read one entry more than a page has: if the list was
/// longer, another page follows, and this returns `true`.
pub(super) fn cut<T>(list: &mut Vec<T>, limit: i64) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = list.len() > limit;
    list.truncate(limit);
    more
}
