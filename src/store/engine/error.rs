//! The meaning of database errors.

use super::pool;
use crate::model::Error;

/// Converts an error of the database: `unavailable` if the database is away or overloaded,
/// `internal` for any other cause.
pub(in crate::store) fn failure(error: sqlx::Error) -> Error {
    let away = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(cause) => {
            cause.code().is_some_and(|code| {
                // Postgres: connection, resources, operator intervention, deadlock or
                // serialization, lock timeout; a new connection that is refused because of the
                // login, the database's name or its state; a standby. SQLite: busy, locked.
                let postgres = ["08", "53", "57", "40", "55P03", "28", "3D000", "55000", "25006"]
                    .iter()
                    .any(|class| code.len() == 5 && code.starts_with(class));
                let primary = code.parse::<u32>().map(|code| code & 0xff);
                postgres || (code.len() < 5 && matches!(primary, Ok(5 | 6)))
            }) || pool::is_end_of_session(&error)
                || pool::is_stale_plan(&error)
        }
        _ => false,
    };
    if away { Error::unavailable(error) } else { Error::internal(error) }
}

/// Whether an insert failed because the row exists already.
pub(in crate::store) fn is_unique_violation(error: &Error) -> bool {
    matches!(of_database(error), Some(sqlx::Error::Database(cause)) if cause.is_unique_violation())
}

/// Whether a lock was not released within the session's `lock_timeout`.
pub(in crate::store) fn is_lock_timeout(error: &Error) -> bool {
    of_database(error)
        .and_then(sqlx::Error::as_database_error)
        .is_some_and(|cause| cause.code().is_some_and(|code| code == "55P03"))
}

/// The error of the database from which this error was made.
pub(in crate::store) fn of_database(error: &Error) -> Option<&sqlx::Error> {
    error.source.as_deref().and_then(|source| source.downcast_ref())
}
