//! Every metric: its name, unit and help, once. Nothing else in the server names a metric.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::model::{Code, Result};

const REQUESTS: &str = "starling_http_requests_total";
const REQUEST_SECONDS: &str = "starling_http_request_seconds";
const ERRORS: &str = "starling_errors_total";
const SOCKETS: &str = "starling_sockets";
const SOCKETS_OPENED: &str = "starling_sockets_opened_total";
const SOCKETS_CLOSED: &str = "starling_sockets_closed_total";
const FRAMES: &str = "starling_frames_received_total";
const EVENTS_DELIVERED: &str = "starling_events_delivered_total";
const SENDS: &str = "starling_messages_sent_total";
const APPEND_BATCH: &str = "starling_append_batch_messages";
const APPEND_LOCKS: &str = "starling_append_locks_met_total";
const APPEND_LANES: &str = "starling_append_lanes_opened_total";
const APPEND_REFUSED: &str = "starling_append_refused_total";
const STORE_SECONDS: &str = "starling_store_seconds";
const STORE_ERRORS: &str = "starling_store_errors_total";
const STORE_REFUSED: &str = "starling_store_refused_total";
const FRAMES_WAITED: &str = "starling_frames_waited_total";
const STORE_CONNECTIONS_CLOSED: &str = "starling_store_connections_closed_total";
const BUS_LOST: &str = "starling_bus_events_lost_total";
const HUB_CHATS: &str = "starling_hub_chats";
const LOG_EPOCHS: &str = "starling_log_epochs_total";
const HUB_CHATS_RESYNCED: &str = "starling_hub_chats_resynced_total";
const HUB_RESYNCS: &str = "starling_hub_resyncs_total";
const HUB_RESYNCS_OVERFLOWED: &str = "starling_hub_resyncs_overflowed_total";
const HUB_HEALS: &str = "starling_hub_heals_total";
const RATE_LIMITED: &str = "starling_rate_limited_total";
const SWEPT: &str = "starling_swept_rows_total";
const SWEEPS_SKIPPED: &str = "starling_sweeps_skipped_total";
const DEPARTURES: &str = "starling_removal_departures_total";
const PRESENCE_WATCHES: &str = "starling_presence_watches";
const PRESENCE_EVENTS: &str = "starling_presence_events_total";
const PRESENCE_UNSYNCED: &str = "starling_presence_unsynced_connections_total";
const CONNECTIONS_REFUSED: &str = "starling_connections_refused_total";
const CONNECTIONS_CLOSED: &str = "starling_connections_closed_total";
const REQUESTS_REFUSED: &str = "starling_requests_refused_total";
const PROXIES_UNTRUSTED: &str = "starling_untrusted_proxy_requests_total";
const REPLICAS: &str = "starling_replicas";
const REDIS_SECONDS: &str = "starling_redis_seconds";
const REDIS_ERRORS: &str = "starling_redis_errors_total";
const BUS_CONNECTED: &str = "starling_bus_connected";
const BUS_UNPUBLISHED: &str = "starling_bus_events_unpublished_total";
const BUS_TOO_LARGE: &str = "starling_bus_events_too_large_total";
const BUS_UNREADABLE: &str = "starling_bus_events_unreadable_total";
const BUS_TOPICS_OVERFLOWED: &str = "starling_bus_dirty_topics_overflowed_total";
const BUS_RECONNECTS: &str = "starling_bus_reconnects_total";
const BUS_CANARY_TIMEOUTS: &str = "starling_bus_canary_timeouts_total";
const BUS_FORGED: &str = "starling_bus_messages_refused_total";
const BUS_STALE: &str = "starling_bus_stale_total";
const SESSION_ENTRIES_STALE: &str = "starling_session_entries_stale_total";
const REFRESH_TOKENS_FORGOTTEN: &str = "starling_refresh_tokens_forgotten_total";
const LIMITED_ALONE: &str = "starling_rate_limits_alone_total";

/// Tells the exporter the unit and help of each metric.
pub fn describe() {
    describe_counter!(REQUESTS, "HTTP requests by method, route and status");
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Time from a request's head to its answer, by method and route"
    );
    describe_counter!(ERRORS, "Errors told to clients, by code and by where (http, gateway)");
    describe_gauge!(SOCKETS, "Authenticated WebSocket connections now");
    describe_counter!(SOCKETS_OPENED, "WebSocket connections that were authenticated");
    describe_counter!(SOCKETS_CLOSED, "WebSocket connections that ended, by close code");
    describe_counter!(FRAMES, "Frames received from clients, by type");
    describe_counter!(EVENTS_DELIVERED, "Events put into outboxes");
    describe_counter!(SENDS, "Messages committed");
    describe_histogram!(APPEND_BATCH, "Messages in one commit");
    describe_counter!(
        APPEND_LOCKS,
        "Batches of messages that met a chat or a table that another transaction held"
    );
    describe_counter!(
        APPEND_LANES,
        "Chats whose messages left the batches, to wait for the chat's lock alone"
    );
    describe_counter!(
        APPEND_REFUSED,
        "Messages refused because too many waited, by bound (queue, lanes, lane)"
    );
    describe_histogram!(
        STORE_SECONDS,
        Unit::Seconds,
        "Time of a unit of work in the store, by unit"
    );
    describe_counter!(
        STORE_ERRORS,
        "Units of work that failed for reasons other than the request, by code"
    );
    describe_counter!(
        STORE_CONNECTIONS_CLOSED,
        "Connections to Postgres closed because they were in doubt, by reason"
    );
    describe_counter!(
        STORE_REFUSED,
        "Units of work refused at once because too many waited for a connection to Postgres, by pool"
    );
    describe_counter!(
        FRAMES_WAITED,
        "Frames that waited because as many of their user were worked on as may be"
    );
    describe_counter!(RATE_LIMITED, "Requests and frames refused by a rate limit, by rate");
    describe_counter!(SWEPT, "Rows removed by the cleaning jobs, by kind");
    describe_counter!(
        SWEEPS_SKIPPED,
        "Rounds of the cleaning jobs that left what had expired alone because the clock had jumped"
    );
    describe_counter!(DEPARTURES, "Chats that removed accounts left");
    describe_gauge!(PRESENCE_WATCHES, "Pairs of a connection and a user whose presence it watches");
    describe_counter!(PRESENCE_EVENTS, "Presence frames queued for connections that watch a user");
    describe_counter!(
        PRESENCE_UNSYNCED,
        "Connections accepted without knowing how many connections their user has on other replicas, because Redis was away"
    );
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections refused because a bound was reached, by bound"
    );
    describe_counter!(
        CONNECTIONS_CLOSED,
        "Connections that the listener closed: evicted, no_request, idle or answer_stalled, by reason"
    );
    describe_counter!(
        REQUESTS_REFUSED,
        "Requests refused because too many were in progress, by bound"
    );
    describe_counter!(
        PROXIES_UNTRUSTED,
        "Requests with X-Forwarded-For whose peer is not in trusted_proxies, so that the peer's address counted"
    );
    describe_gauge!(REPLICAS, "Replicas with a lease, as this one sees it");
    describe_histogram!(REDIS_SECONDS, Unit::Seconds, "Time of a call of Redis, by unit");
    describe_counter!(REDIS_ERRORS, "Calls of Redis that failed, by unit");
    describe_counter!(
        SESSION_ENTRIES_STALE,
        "Sessions in Redis sealed longer ago than an entry lives; the replica asks the store. If it rises, a copy is \
         replayed or the replicas' clocks differ"
    );
    describe_counter!(
        REFRESH_TOKENS_FORGOTTEN,
        "Spent refresh tokens deleted because their session has more recent ones than are kept. If it rises quickly, a \
         client refreshes in a loop"
    );
    describe_counter!(
        LIMITED_ALONE,
        "Rates counted by this replica alone because Redis was away, by rate"
    );
    describe_hub();
    describe_bus();
}

/// The part of [`describe`] about delivery on this replica.
fn describe_hub() {
    describe_gauge!(HUB_CHATS, "Chats that have a subscriber on this replica");
    describe_counter!(
        LOG_EPOCHS,
        "Times that this replica gave the log a new epoch because it fell back, by reason; any increase is an alert"
    );
    describe_counter!(
        HUB_CHATS_RESYNCED,
        "Changed chats whose revision was compared with the store, in case the bus lost an event. It follows the number of \
         chats that change; if it rises faster than that, resyncs are frequent because the bus is unstable"
    );
    describe_counter!(
        HUB_RESYNCS,
        "Comparisons of a chat or user with the store after a unit of work with an unknown outcome. If it rises, answers of \
         the database are lost or late"
    );
    describe_counter!(
        HUB_RESYNCS_OVERFLOWED,
        "Times that too many such comparisons waited, so that everything was compared. If it rises, the database has been \
         unavailable for long"
    );
    describe_counter!(
        HUB_HEALS,
        "Times that events missing from a chat were fetched from the store, by reason (gap, sync, check, join). If it \
         rises faster than the traffic, the bus loses events"
    );
}

/// The part of [`describe`] about the bus between replicas.
fn describe_bus() {
    describe_counter!(
        BUS_LOST,
        "Events that did not fit into the queue of the hub or of the publisher; all chats are compared with the store \
         instead. If it rises, this replica is overloaded"
    );
    describe_gauge!(
        BUS_CONNECTED,
        "1 while the subscribed connection to Redis is up; while 0, the replica compares its chats with the store every second"
    );
    describe_counter!(
        BUS_UNPUBLISHED,
        "Events that could not be published. If it rises, Redis is unreachable or slow; other replicas find these events by \
         comparing their chats with the store, a second or more later"
    );
    describe_counter!(
        BUS_TOO_LARGE,
        "Events too large to publish; the other replicas read them from the store. If it rises quickly, messages near the \
         longest text are frequent, and the database serves more reads"
    );
    describe_counter!(
        BUS_UNREADABLE,
        "Events that another version of the server published and this one cannot read; the replica compares their chats \
         with the store at once. It rises during a rolling update; if it rises at other times, the replicas run different \
         versions"
    );
    describe_counter!(
        BUS_TOPICS_OVERFLOWED,
        "Times that too many topics waited for a comparison with the store, so that everything was compared, by set \
         (unpublished, stale, unreadable). If it rises, Redis was unreachable under load, or a flood of messages is replayed"
    );
    describe_counter!(
        BUS_RECONNECTS,
        "Times that the subscribed connection ended. If it rises steadily, Redis or the network to it is unstable, or Redis \
         disconnects this replica because it reads too slowly"
    );
    describe_counter!(
        BUS_CANARY_TIMEOUTS,
        "Times that the subscribed connection was replaced because the messages of this replica to itself did not arrive \
         for 7 s. If it rises, connections to Redis die without an error, such as in a firewall"
    );
    describe_counter!(
        BUS_FORGED,
        "Messages on the bus whose seal is wrong; they are dropped. If it rises, another deployment uses the same Redis \
         prefix, or something other than a replica publishes there"
    );
    describe_counter!(
        BUS_STALE,
        "Messages on the bus sealed more than a minute ago; the replica compares their topics with the store. If it rises, \
         copies are replayed or the replicas' clocks differ"
    );
}

/// A request was answered.
pub fn request(method: &'static str, route: &str, status: u16, took: Duration) {
    counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
    histogram!(REQUEST_SECONDS, "method" => method, "route" => route.to_owned())
        .record(took.as_secs_f64());
}

/// A client was told of an error.
pub fn error(code: Code, at: &'static str) {
    counter!(ERRORS, "code" => code.as_str(), "at" => at).increment(1);
}

/// A connection was authenticated.
pub fn socket_opened() {
    gauge!(SOCKETS).increment(1);
    counter!(SOCKETS_OPENED).increment(1);
}

/// An authenticated connection ended.
pub fn socket_closed() {
    gauge!(SOCKETS).decrement(1);
}

/// A connection ended with this close code.
pub fn close_code(code: u16) {
    counter!(SOCKETS_CLOSED, "code" => code.to_string()).increment(1);
}

/// A frame came in.
pub fn frame(kind: &'static str) {
    counter!(FRAMES, "type" => kind).increment(1);
}

/// A frame waited for one of its user's permits.
pub fn frame_waited() {
    counter!(FRAMES_WAITED).increment(1);
}

/// A unit of work found too many before it in the queue for a connection.
pub fn store_refused(pool: &'static str) {
    counter!(STORE_REFUSED, "pool" => pool).increment(1);
}

/// An event was put into this many outboxes.
pub fn events_delivered(count: u64) {
    counter!(EVENTS_DELIVERED).increment(count);
}

/// A batch of messages goes to its commit.
pub fn append_batch(messages: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most a few hundred")]
    histogram!(APPEND_BATCH).record(messages as f64);
}

/// A batch waited for a lock in vain.
pub fn append_met_lock() {
    counter!(APPEND_LOCKS).increment(1);
}

/// A chat's messages wait for its lock alone.
pub fn append_lane_opened() {
    counter!(APPEND_LANES).increment(1);
}

/// A message was refused because too many wait.
pub fn append_refused(bound: &'static str) {
    counter!(APPEND_REFUSED, "bound" => bound).increment(1);
}

/// This many messages were committed.
pub fn messages_sent(count: u64) {
    counter!(SENDS).increment(count);
}

/// A unit of work ended.
pub fn store_unit<T>(unit: &'static str, took: Duration, result: &Result<T>) {
    histogram!(STORE_SECONDS, "unit" => unit).record(took.as_secs_f64());
    if let Err(error) = result
        && matches!(error.code, Code::Unavailable | Code::Internal)
    {
        counter!(STORE_ERRORS, "code" => error.code.as_str()).increment(1);
    }
}

/// Connections to the database were closed because one of them proved bad.
pub fn store_connections_closed(reason: &'static str, count: usize) {
    counter!(STORE_CONNECTIONS_CLOSED, "reason" => reason).increment(count as u64);
}

/// The queue of the hub or of the publisher was full.
pub fn bus_lost() {
    counter!(BUS_LOST).increment(1);
}

/// So many chats have a subscriber here.
pub fn hub_chats(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact far beyond what fits in memory")]
    gauge!(HUB_CHATS).set(count as f64);
}

/// The log fell back and got a new epoch from this replica.
pub fn log_epoch_renewed(reason: &'static str) {
    counter!(LOG_EPOCHS, "reason" => reason).increment(1);
}

/// So many chats that changed were compared with the store.
pub fn hub_chats_resynced(count: usize) {
    counter!(HUB_CHATS_RESYNCED).increment(count as u64);
}

/// So many topics were compared with the store after an unknown outcome.
pub fn hub_resynced(count: usize) {
    counter!(HUB_RESYNCS).increment(count as u64);
}

/// Too many topics waited for such a comparison.
pub fn hub_resyncs_overflowed() {
    counter!(HUB_RESYNCS_OVERFLOWED).increment(1);
}

/// A chat's missing events were fetched.
pub fn hub_heal(reason: &'static str) {
    counter!(HUB_HEALS, "reason" => reason).increment(1);
}

/// A rate limit refused something.
pub fn rate_limited(rate: &'static str) {
    counter!(RATE_LIMITED, "rate" => rate).increment(1);
}

/// The cleaning jobs removed so many rows of a kind.
pub fn swept(kind: &'static str, rows: u64) {
    counter!(SWEPT, "kind" => kind).increment(rows);
}

/// What had expired was left alone, since the clock had jumped.
pub fn sweep_skipped() {
    counter!(SWEEPS_SKIPPED).increment(1);
}

/// A removed account left a chat.
pub fn chat_left_by_removal() {
    counter!(DEPARTURES).increment(1);
}

/// So many pairs of a connection and a user whom it watches.
pub fn presence_watches(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact far beyond what fits in memory")]
    gauge!(PRESENCE_WATCHES).set(count as f64);
}

/// Presence frames were queued for this many connections.
pub fn presence_events(count: u64) {
    counter!(PRESENCE_EVENTS).increment(count);
}

/// A connection was accepted without an answer of Redis.
pub fn presence_unsynced_connection() {
    counter!(PRESENCE_UNSYNCED).increment(1);
}

/// A connection was refused at the door.
pub fn connection_refused(bound: &'static str) {
    counter!(CONNECTIONS_REFUSED, "bound" => bound).increment(1);
}

/// The listener closed a connection by itself.
pub fn connection_closed(reason: &'static str) {
    counter!(CONNECTIONS_CLOSED, "reason" => reason).increment(1);
}

/// A request was refused because too many were in progress.
pub fn request_refused(bound: &'static str) {
    counter!(REQUESTS_REFUSED, "bound" => bound).increment(1);
}

/// A request came through a proxy that is not trusted.
pub fn proxy_untrusted() {
    counter!(PROXIES_UNTRUSTED).increment(1);
}

/// So many replicas have a lease.
pub fn replicas(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact far beyond any fleet")]
    gauge!(REPLICAS).set(count as f64);
}

/// A call of Redis ended.
pub fn redis_call(unit: &'static str, took: Duration, done: bool) {
    histogram!(REDIS_SECONDS, "unit" => unit).record(took.as_secs_f64());
    if !done {
        counter!(REDIS_ERRORS, "unit" => unit).increment(1);
    }
}

/// The subscribed connection came up, or went.
pub fn bus_connected(connected: bool) {
    gauge!(BUS_CONNECTED).set(f64::from(u8::from(connected)));
}

/// Events could not be published.
pub fn bus_unpublished(count: usize) {
    counter!(BUS_UNPUBLISHED).increment(count as u64);
}

/// An event was too large to be published.
pub fn bus_event_too_large() {
    counter!(BUS_TOO_LARGE).increment(1);
}

/// An event of another version arrived.
pub fn bus_unreadable() {
    counter!(BUS_UNREADABLE).increment(1);
}

/// Too many topics waited for a comparison.
pub fn bus_dirty_topics_overflowed(set: &'static str) {
    counter!(BUS_TOPICS_OVERFLOWED, "set" => set).increment(1);
}

/// The subscribed connection was lost.
pub fn bus_reconnect() {
    counter!(BUS_RECONNECTS).increment(1);
}

/// The canaries of this replica did not arrive.
pub fn bus_canary_timeout() {
    counter!(BUS_CANARY_TIMEOUTS).increment(1);
}

/// A message on the bus had a wrong seal.
pub fn bus_forged() {
    counter!(BUS_FORGED).increment(1);
}

/// A message on the bus was too old to be delivered.
pub fn bus_stale() {
    counter!(BUS_STALE).increment(1);
}

/// A session in Redis was too old to be believed.
pub fn session_entry_stale() {
    counter!(SESSION_ENTRIES_STALE).increment(1);
}

/// Spent refresh tokens were deleted because their session has enough.
pub fn refresh_tokens_forgotten(count: usize) {
    counter!(REFRESH_TOKENS_FORGOTTEN).increment(count as u64);
}

/// A rate was counted without Redis.
pub fn limiter_alone(rate: &'static str) {
    counter!(LIMITED_ALONE, "rate" => rate).increment(1);
}
