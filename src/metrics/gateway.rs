//! WebSocket connections and their frames.

use metrics::{counter, describe_counter, describe_gauge, gauge};

const SOCKETS: &str = "starling_sockets";
const SOCKETS_OPENED: &str = "starling_sockets_opened_total";
const SOCKETS_CLOSED: &str = "starling_sockets_closed_total";
const FRAMES: &str = "starling_frames_received_total";
const FRAMES_WAITED: &str = "starling_frames_waited_total";
const EVENTS_DELIVERED: &str = "starling_events_delivered_total";
const PRESENCE_WATCHES: &str = "starling_presence_watches";
const PRESENCE_EVENTS: &str = "starling_presence_events_total";
const PRESENCE_UNSYNCED: &str = "starling_presence_unsynced_connections_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_gauge!(
        SOCKETS,
        "Authenticated WebSocket connections. If it falls suddenly, clients were disconnected"
    );
    describe_counter!(
        SOCKETS_OPENED,
        "WebSocket connections that authenticated. If it rises quickly while starling_sockets does \
         not, clients reconnect often"
    );
    describe_counter!(
        SOCKETS_CLOSED,
        "WebSocket connections that ended, by close code. If 4413 rises, clients read too slowly; \
         if 4408 rises, clients fail to authenticate or to send heartbeats in time"
    );
    describe_counter!(FRAMES, "Frames received from clients, by type. It rises with the traffic");
    describe_counter!(
        FRAMES_WAITED,
        "Frames that waited because their user had the maximum number of frames in progress. If it \
         rises, clients send faster than the database answers"
    );
    describe_counter!(
        EVENTS_DELIVERED,
        "Events put into outboxes, counted once per connection. It rises with the traffic and the \
         number of subscribers"
    );
    describe_gauge!(
        PRESENCE_WATCHES,
        "Pairs of a connection and a user whose presence it watches. If it rises, each change of \
         presence costs more frames"
    );
    describe_counter!(
        PRESENCE_EVENTS,
        "Presence frames queued for watching connections. If it rises quickly, many users come \
         online and go offline"
    );
    describe_counter!(
        PRESENCE_UNSYNCED,
        "Connections accepted without a count of their user's connections on other replicas. If it \
         rises, Redis is unavailable or slow"
    );
}

/// Records a connection that authenticated.
pub fn socket_opened() {
    gauge!(SOCKETS).increment(1);
    counter!(SOCKETS_OPENED).increment(1);
}

/// Records the end of an authenticated connection.
pub fn socket_closed() {
    gauge!(SOCKETS).decrement(1);
}

/// Records a connection that ended with this close code.
pub fn close_code(code: u16) {
    counter!(SOCKETS_CLOSED, "code" => code.to_string()).increment(1);
}

/// Records a received frame of this type.
pub fn frame(kind: &'static str) {
    counter!(FRAMES, "type" => kind).increment(1);
}

/// Records a frame that waited for one of its user's permits.
pub fn frame_waited() {
    counter!(FRAMES_WAITED).increment(1);
}

/// Records an event that was put into this many outboxes.
pub fn events_delivered(count: u64) {
    counter!(EVENTS_DELIVERED).increment(count);
}

/// Sets the number of pairs of a connection and a watched user.
pub fn presence_watches(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    gauge!(PRESENCE_WATCHES).set(count as f64);
}

/// Records presence frames that were queued for this many connections.
pub fn presence_events(count: u64) {
    counter!(PRESENCE_EVENTS).increment(count);
}

/// Records a connection that was accepted without an answer of Redis.
pub fn presence_unsynced_connection() {
    counter!(PRESENCE_UNSYNCED).increment(1);
}
