//! Pages of lists: how many entries a page has, and whether another page follows.

use crate::model::limits::PAGE;
use crate::model::{Error, Result};

/// The number of entries of a page: `requested`, but at most `page_max`. `None` stands for
/// [`PAGE`].
///
/// # Errors
/// `invalid_fields` for `field` if `requested` is less than 1.
pub(super) fn size(field: &str, requested: Option<i64>, page_max: i64) -> Result<i64> {
    match requested {
        Some(requested) if requested < 1 => Err(Error::field(field, "must be at least 1")),
        Some(requested) => Ok(requested.min(page_max)),
        None => Ok(page_max.min(PAGE)),
    }
}

/// Cuts a list to `limit` entries. Callers read one entry more than `limit`. Returns `true` if the
/// list was longer, so that another page follows.
pub(super) fn cut<T>(list: &mut Vec<T>, limit: i64) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = list.len() > limit;
    list.truncate(limit);
    more
}
