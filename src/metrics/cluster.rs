//! Redis: its calls, leases, the bus between replicas, and the state that replicas share.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const REPLICAS: &str = "starling_replicas";
const REDIS_SECONDS: &str = "starling_redis_seconds";
const REDIS_ERRORS: &str = "starling_redis_errors_total";
const SESSION_ENTRIES_STALE: &str = "starling_session_entries_stale_total";
const LIMITED_ALONE: &str = "starling_rate_limits_without_redis_total";
const BUS_LOST: &str = "starling_bus_events_lost_total";
const BUS_CONNECTED: &str = "starling_bus_connected";
const BUS_UNPUBLISHED: &str = "starling_bus_events_unpublished_total";
const BUS_TOO_LARGE: &str = "starling_bus_events_too_large_total";
const BUS_UNREADABLE: &str = "starling_bus_events_unreadable_total";
const BUS_TOPICS_OVERFLOWED: &str = "starling_bus_dirty_topics_overflowed_total";
const BUS_RECONNECTS: &str = "starling_bus_reconnects_total";
const BUS_CANARY_TIMEOUTS: &str = "starling_bus_canary_timeouts_total";
const BUS_FORGED: &str = "starling_bus_messages_refused_total";
const BUS_STALE: &str = "starling_bus_stale_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_gauge!(
        REPLICAS,
        "Replicas with a lease, as this replica sees them. If it is lower than the number of \
         running replicas, a replica cannot reach Redis"
    );
    describe_histogram!(
        REDIS_SECONDS,
        Unit::Seconds,
        "Time of a call to Redis, by unit. If it rises, Redis or the network to it is slow"
    );
    describe_counter!(
        REDIS_ERRORS,
        "Calls to Redis that failed, by unit. If it rises, Redis is unavailable or slow"
    );
    describe_counter!(
        SESSION_ENTRIES_STALE,
        "Sessions in Redis whose seal is older than their lifetime; the replica reads them from \
         the store. If it rises, copies are replayed or the replicas' clocks differ"
    );
    describe_counter!(
        LIMITED_ALONE,
        "Rate limit checks that this replica made without Redis, by rate. If it rises, Redis is \
         unavailable"
    );
    describe_bus();
}

fn describe_bus() {
    describe_counter!(
        BUS_LOST,
        "Events that did not fit into the queue of the hub or of the publisher; all chats are \
         compared with the store instead. If it rises, this replica is overloaded"
    );
    describe_gauge!(
        BUS_CONNECTED,
        "1 while the subscribed connection to Redis is up. While it is 0, the replica compares its \
         chats with the store every second"
    );
    describe_counter!(
        BUS_UNPUBLISHED,
        "Events that could not be published. If it rises, Redis is unreachable or slow; other \
         replicas find these events by comparing their chats with the store, a second or more \
         later"
    );
    describe_counter!(
        BUS_TOO_LARGE,
        "Events too large to publish; the other replicas read them from the store. If it rises \
         quickly, messages near the longest text are frequent, and the database serves more reads"
    );
    describe_counter!(
        BUS_UNREADABLE,
        "Events that another version of the server published and this version cannot read; the \
         replica compares their chats with the store at once. It rises during a rolling update; if \
         it rises at other times, the replicas run different versions"
    );
    describe_counter!(
        BUS_TOPICS_OVERFLOWED,
        "Times that all chats were compared because too many topics waited for a comparison with \
         the store, by set (unpublished, stale, unreadable). If it rises, Redis was unreachable \
         under load, or a flood of messages is replayed"
    );
    describe_counter!(
        BUS_RECONNECTS,
        "Times that the subscribed connection ended. If it rises steadily, Redis or the network to \
         it is unstable, or Redis disconnects this replica because it reads too slowly"
    );
    describe_counter!(
        BUS_CANARY_TIMEOUTS,
        "Times that the subscribed connection was replaced because this replica's canaries did not \
         arrive for 7 s. If it rises, connections to Redis die without an error, for example in a \
         firewall"
    );
    describe_counter!(
        BUS_FORGED,
        "Messages on the bus whose seal is wrong; they are dropped. If it rises, another \
         deployment uses the same Redis prefix, or something other than a replica publishes there"
    );
    describe_counter!(
        BUS_STALE,
        "Messages on the bus sealed more than a minute ago; the replica compares their topics with \
         the store. If it rises, copies are replayed or the replicas' clocks differ"
    );
}

/// Sets the number of replicas with a lease.
pub fn replicas(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    gauge!(REPLICAS).set(count as f64);
}

/// Records the time and the success of a call to Redis.
pub fn redis_call(unit: &'static str, took: Duration, done: bool) {
    histogram!(REDIS_SECONDS, "unit" => unit).record(took.as_secs_f64());
    if !done {
        counter!(REDIS_ERRORS, "unit" => unit).increment(1);
    }
}

/// Records a session in Redis that was too old to use.
pub fn session_entry_stale() {
    counter!(SESSION_ENTRIES_STALE).increment(1);
}

/// Records a rate limit check without Redis.
pub fn limiter_without_redis(rate: &'static str) {
    counter!(LIMITED_ALONE, "rate" => rate).increment(1);
}

/// Records an event that found the queue of the hub or of the publisher full.
pub fn bus_lost() {
    counter!(BUS_LOST).increment(1);
}

/// Sets whether the subscribed connection is up.
pub fn bus_connected(connected: bool) {
    gauge!(BUS_CONNECTED).set(f64::from(u8::from(connected)));
}

/// Records events that could not be published.
pub fn bus_unpublished(count: usize) {
    counter!(BUS_UNPUBLISHED).increment(count as u64);
}

/// Records an event that was too large to publish.
pub fn bus_event_too_large() {
    counter!(BUS_TOO_LARGE).increment(1);
}

/// Records an event of another version.
pub fn bus_unreadable() {
    counter!(BUS_UNREADABLE).increment(1);
}

/// Records that too many topics of this set waited for a comparison.
pub fn bus_dirty_topics_overflowed(set: &'static str) {
    counter!(BUS_TOPICS_OVERFLOWED, "set" => set).increment(1);
}

/// Records the end of the subscribed connection.
pub fn bus_reconnect() {
    counter!(BUS_RECONNECTS).increment(1);
}

/// Records that the canaries of this replica did not arrive.
pub fn bus_canary_timeout() {
    counter!(BUS_CANARY_TIMEOUTS).increment(1);
}

/// Records a message with a wrong seal.
pub fn bus_forged() {
    counter!(BUS_FORGED).increment(1);
}

/// Records a message that was too old to deliver.
pub fn bus_stale() {
    counter!(BUS_STALE).increment(1);
}
