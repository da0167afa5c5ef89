//! What the errors of the databases mean.

use super::pool;
use crate::model::Error;

/// What a database's failure means: away or overloaded is `unavailable`, anything else a fault of
/// ours.
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
                // Postgres: connection, resources, operator, deadlock, serialization, lock timeout;
                // and what refuses a new connection: the login, the database's name or its state; a
                // standby. SQLite: busy, locked.
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

/// Whether an insert met a row that is there already.
pub(in crate::store) fn is_unique_violation(error: &Error) -> bool {
    matches!(of_database(error), Some(sqlx::Error::Database(cause)) if cause.is_unique_violation())
}

/// Whether a lock was not to be had in the time that the session waits for one.
pub(in crate::store) fn is_lock_timeout(error: &Error) -> bool {
    of_database(error)
        .and_then(sqlx::Error::as_database_error)
        .is_some_and(|cause| cause.code().is_some_and(|code| code == "55P03"))
}

/// The database's own error behind this one.
pub(in crate::store) fn of_database(error: &Error) -> Option<&sqlx::Error> {
    error.source.as_deref().and_then(|source| source.downcast_ref())
}
