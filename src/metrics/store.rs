//! The database: commits of messages, units of work, connections and clean-up.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::model::{Code, Result};

const SENDS: &str = "starling_messages_sent_total";
const APPEND_BATCH: &str = "starling_append_batch_messages";
const APPEND_LOCKS: &str = "starling_append_locks_met_total";
const APPEND_LANES: &str = "starling_append_lanes_opened_total";
const APPEND_REFUSED: &str = "starling_append_refused_total";
const STORE_SECONDS: &str = "starling_store_seconds";
const STORE_ERRORS: &str = "starling_store_errors_total";
const STORE_CONNECTIONS_CLOSED: &str = "starling_store_connections_closed_total";
const STORE_REFUSED: &str = "starling_store_refused_total";
const LOG_EPOCHS: &str = "starling_log_epochs_total";
const CLEANUP_ROWS: &str = "starling_cleanup_rows_total";
const CLEANUPS_SKIPPED: &str = "starling_cleanups_skipped_total";
const DEPARTURES: &str = "starling_removal_departures_total";
const REFRESH_TOKENS_FORGOTTEN: &str = "starling_refresh_tokens_forgotten_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_counter!(SENDS, "Messages committed. It rises with the traffic");
    describe_histogram!(
        APPEND_BATCH,
        "Messages in one commit. If it rises, more sends share a commit because the load is higher \
         or commits are slower"
    );
    describe_counter!(
        APPEND_LOCKS,
        "Batches of messages that did not get the lock of a chat or table in time. If it rises, \
         other transactions hold locks for long"
    );
    describe_counter!(
        APPEND_LANES,
        "Chats whose messages left the batches to wait for the chat's row lock in a lane. If it \
         rises, other transactions hold the row locks of chats for long"
    );
    describe_counter!(
        APPEND_REFUSED,
        "Messages refused because too many waited, by bound (queue, lanes, lane). If queue rises, \
         the database commits too slowly for the load; if lanes or lane rises, transactions hold \
         the row locks of chats"
    );
    describe_histogram!(
        STORE_SECONDS,
        Unit::Seconds,
        "Time of a unit of work in the store, by unit. If it rises, the database is slow or all of \
         its connections are in use"
    );
    describe_counter!(
        STORE_ERRORS,
        "Units of work that failed for a reason other than the request, by code. If unavailable \
         rises, the database is unreachable or overloaded; if internal rises, the log has the \
         causes"
    );
    describe_counter!(
        STORE_CONNECTIONS_CLOSED,
        "Connections to Postgres closed because their state was in doubt, by reason. If it rises, \
         statements time out or connections break"
    );
    describe_counter!(
        STORE_REFUSED,
        "Units of work refused at once because too many waited for a connection to Postgres, by \
         pool. If it rises, the database is stalled or overloaded"
    );
    describe_counter!(
        LOG_EPOCHS,
        "Times that this replica gave the log a new epoch because the log fell back, by reason. \
         Any increase is an alert: the database lost committed changes"
    );
    describe_counter!(
        CLEANUP_ROWS,
        "Rows removed by the clean-up jobs, by kind. It rises as sessions and invites expire and \
         as chats are removed"
    );
    describe_counter!(
        CLEANUPS_SKIPPED,
        "Runs of the clean-up jobs that removed no expired rows because the clock had jumped. If \
         it rises, the clock of the database or of this machine is unstable"
    );
    describe_counter!(
        DEPARTURES,
        "Chats that removed accounts left. It rises while accounts are removed"
    );
    describe_counter!(
        REFRESH_TOKENS_FORGOTTEN,
        "Spent refresh tokens deleted because their session has more recent ones than are kept. If \
         it rises quickly, a client refreshes in a loop"
    );
}

/// Records the size of a batch of messages before its commit.
pub fn append_batch(messages: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most a few hundred")]
    histogram!(APPEND_BATCH).record(messages as f64);
}

/// Records a batch that did not get a lock in time.
pub fn append_lock_timed_out() {
    counter!(APPEND_LOCKS).increment(1);
}

/// Records a chat whose messages began to wait in a lane.
pub fn append_lane_opened() {
    counter!(APPEND_LANES).increment(1);
}

/// Records a message that was refused because of this bound.
pub fn append_refused(bound: &'static str) {
    counter!(APPEND_REFUSED, "bound" => bound).increment(1);
}

/// Records committed messages.
pub fn messages_sent(count: u64) {
    counter!(SENDS).increment(count);
}

/// Records the time and the result of a unit of work.
pub fn store_unit<T>(unit: &'static str, took: Duration, result: &Result<T>) {
    histogram!(STORE_SECONDS, "unit" => unit).record(took.as_secs_f64());
    if let Err(error) = result
        && matches!(error.code, Code::Unavailable | Code::Internal)
    {
        counter!(STORE_ERRORS, "code" => error.code.as_str()).increment(1);
    }
}

/// Records a unit of work that was refused because the queue of this pool was full.
pub fn store_refused(pool: &'static str) {
    counter!(STORE_REFUSED, "pool" => pool).increment(1);
}

/// Records connections to Postgres that were closed because one of them failed.
pub fn store_connections_closed(reason: &'static str, count: usize) {
    counter!(STORE_CONNECTIONS_CLOSED, "reason" => reason).increment(count as u64);
}

/// Records that this replica gave the log a new epoch for this reason.
pub fn log_epoch_renewed(reason: &'static str) {
    counter!(LOG_EPOCHS, "reason" => reason).increment(1);
}

/// Records rows of this kind that a clean-up job removed.
pub fn rows_cleaned_up(kind: &'static str, rows: u64) {
    counter!(CLEANUP_ROWS, "kind" => kind).increment(rows);
}

/// Records a clean-up run that removed nothing because the clock had jumped.
pub fn cleanup_skipped() {
    counter!(CLEANUPS_SKIPPED).increment(1);
}

/// Records a chat that a removed account left.
pub fn departure() {
    counter!(DEPARTURES).increment(1);
}

/// Records spent refresh tokens that exceeded the number kept for their session.
pub fn refresh_tokens_forgotten(count: usize) {
    counter!(REFRESH_TOKENS_FORGOTTEN).increment(count as u64);
}
