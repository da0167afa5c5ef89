//! Bounds of single values.

use std::time::Duration;

/// The value, if it is not less than 1.
pub(super) fn at_least_1<T: PartialOrd + From<u8>>(key: &str, value: T) -> Result<T, String> {
    if value < T::from(1) { Err(format!("{key} must be at least 1")) } else { Ok(value) }
}

/// A lifetime in seconds.
pub(super) fn seconds(key: &str, value: u64) -> Result<Duration, String> {
    /// A century. Longer lifetimes are typing errors, and would overflow timestamps.
    const MAX: u64 = 100 * 365 * 24 * 3600;

    if value > MAX {
        return Err(format!("{key} must be at most {MAX}"));
    }
    at_least_1(key, value).map(Duration::from_secs)
}
