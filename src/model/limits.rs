//! Every bound of the server, with its reason. Operators can change those in [`Limits`]; the others
//! are constants.

mod rates;

use std::time::Duration;

pub use rates::*;

/// Characters (Unicode scalar values) of a message after trimming. Part of the protocol.
pub const TEXT_CHARS_MAX: usize = 4096;
/// Characters of a message's text that the inbox shows: one line on a wide screen.
pub const SNIPPET_CHARS_MAX: usize = 140;
/// Characters of the name of a user or chat: it fits in a title bar.
pub const NAME_CHARS_MAX: usize = 100;
/// Characters of a login: lower-case letters, digits, `.`, `_`, `-`.
pub const LOGIN_CHARS_MAX: usize = 64;
/// The fewest characters of a password (NIST SP 800-63B).
pub const PASSWORD_CHARS_MIN: usize = 8;
/// The most characters of a password. Bounds the work of one hash.
pub const PASSWORD_CHARS_MAX: usize = 128;
/// Characters of a device's description, which the list of sessions shows.
pub const DEVICE_CHARS_MAX: usize = 100;
/// Characters of a `client_id`. Part of the protocol.
pub const CLIENT_ID_CHARS_MAX: usize = 64;
/// Characters of a search query in the directory.
pub const QUERY_CHARS_MAX: usize = 100;

/// Entries of a page if the request gives no number: one or two screens.
pub const PAGE: i64 = 50;
/// Statements that read one page of the directory, each at most one page of rows. Several are
/// needed only if most users whose name begins with the query were already listed by their login.
/// At this bound, the page is shorter than requested.
pub const DIRECTORY_READS_MAX: usize = 10;
/// Members that a request can name when it creates a group or channel. Keeps the transaction short.
pub const MEMBERS_AT_ONCE_MAX: usize = 100;
/// Uses of one invite.
pub const INVITE_USES_MAX: i64 = 1000;
/// The longest lifetime of an invite: a month.
pub const INVITE_LIFE_MAX: Duration = Duration::from_hours(30 * 24);
/// The lifetime of an invite if the request gives none.
pub const INVITE_LIFE: Duration = Duration::from_hours(7 * 24);

/// Bytes of a request body. The longest text fits, with each of its 4096 characters escaped as a
/// surrogate pair of 12 bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a file of certificates or of a key. A bundle of all public authorities has a fifth of
/// it.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a request head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time for a client to send a request head or a request body.
pub const REQUEST_READ_MAX: Duration = Duration::from_secs(15);
/// Deadline of a request from the end of its body, and of a frame. After it the answer is `503` or
/// `unavailable`, and the work behind it goes on. Clients can rely on an answer within 5 s.
pub const REQUEST_MAX: Duration = Duration::from_millis(4500);

/// Time from the accept of a connection to the end of its first request head. No client has
/// authenticated before that, so it is as short as a slow network allows: a TCP handshake with two
/// repetitions, and a head of [`HEAD_BYTES_MAX`].
pub const FIRST_HEAD_MAX: Duration = Duration::from_secs(15);
/// How long a connection stays open without a request in progress. Longer than the 60 s of common
/// load balancers, so that they close first: otherwise a request could arrive on a connection that
/// the server is closing.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(75);
/// How long a client may read nothing of an answer before the server closes its connection. As long
/// as [`WRITE_MAX`].
pub const ANSWER_STALL_MAX: Duration = Duration::from_secs(20);
/// Bytes of an answer's body that hyper gets at once, and buffers besides the answer itself.
pub const ANSWER_PIECE_BYTES: usize = 16 * 1024;
/// Concurrent streams of one HTTP/2 connection: as many as a browser opens for a page, and as many
/// as [`USER_REQUESTS_MAX`].
pub const HTTP2_STREAMS_MAX: u32 = 16;
/// Bytes of one HTTP/2 stream that are buffered until the connection writes them: two pieces of an
/// answer.
pub const HTTP2_SEND_BYTES_MAX: usize = 2 * ANSWER_PIECE_BYTES;
/// Concurrent requests of one user on a replica, each from its authentication until the client has
/// read the answer. An answer has about 1 MiB at most, so one account holds at most 16 MiB, over
/// any number of connections and streams.
pub const USER_REQUESTS_MAX: usize = 16;
/// How long a request waits for one of its user's [`USER_REQUESTS_MAX`] permits before it fails
/// with `503`. Shorter than [`REQUEST_MAX`].
pub const USER_REQUEST_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes of text on a page of messages, as stored. A page holds at least one message. As JSON, the
/// text has at most twice as many bytes.
pub const PAGE_BYTES_MAX: usize = 512 * 1024;
/// The share of an IPv6 /56 in multiples of the share of one address: a household has several
/// links.
pub const ADDRESS_SHARES_56: usize = 2;
/// The share of an IPv6 /48 in multiples of the share of one address: a company has many links.
pub const ADDRESS_SHARES_48: usize = 4;

/// Pause between two pings of the database for the readiness probes.
pub const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// Age of the last successful ping at which the replica is no longer ready. One ping may time out
/// after 2 s, and the next one too.
pub const HEALTH_STALE: Duration = Duration::from_secs(6);
/// Pause between two warnings about an untrusted proxy. Any client can cause the warning.
pub const PROXY_WARNING_EVERY: Duration = Duration::from_hours(1);
/// Open files other than clients' connections: the database, Redis, the log, listeners, and
/// connections that are closing.
pub const FILES_RESERVE: usize = 256;

/// Bytes of one WebSocket message from a client. The longest text fits, escaped.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a frame's `id`, which the answer repeats. A UUID in text form fits. Part of the
/// protocol.
pub const FRAME_ID_BYTES_MAX: usize = 64;
/// Bytes of a connection's read buffer. Each idle connection holds this much; a larger frame grows
/// the buffer.
pub const READ_BUFFER_BYTES: usize = 1024;
/// Size of a connection's send buffer in the kernel. Linux doubles it to 512 KiB, which allows 20
/// Mbit/s at a round trip of 200 ms. The default of Linux is up to 4 MiB, with which a thousand
/// stalled clients would use up the memory for all TCP connections of the machine.
pub const SEND_BUFFER_BYTES: u32 = 256 * 1024;
/// Bytes of an outbox. A slow consumer that exceeds it is closed with 4413.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that a connection writes at once.
pub const WRITE_BATCH_BYTES_MAX: usize = 64 * 1024;
/// How long sent bytes may stay unacknowledged by TCP before the kernel drops the connection. As
/// long as two heartbeats; the default of Linux is about 15 minutes.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_mins(1);
/// Time for one write to a WebSocket. Then the connection is dropped.
pub const WRITE_MAX: Duration = Duration::from_secs(20);
/// Time for a client to authenticate by its first frame. Part of the protocol.
pub const AUTHENTICATE_MAX: Duration = Duration::from_secs(5);
/// Time for the closing handshake.
pub const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Bad frames in a row that close a connection. Part of the protocol.
pub const BAD_FRAMES_MAX: u32 = 10;
/// Frames refused by the rate limit, less those accepted since, that close a connection with 4429.
pub const FLOODED_FRAMES_MAX: u32 = 100;
/// Frames of one connection in progress. Further frames wait in the socket.
pub const INFLIGHT_FRAMES_MAX: usize = 32;
/// Chats that one `sync` may name: more than a user can have.
pub const SYNC_CHATS_MAX: usize = 10_000;
/// Bytes of one chat in a `sync` frame: its id in quotation marks, a colon, a revision below 10⁹
/// (ten changes a second for three years) and a comma.
pub const SYNC_CHAT_BYTES: usize = 36 + 2 + 1 + 9 + 1;
/// Bytes of a `sync` frame besides its chats: its type, id, epoch and options.
pub const SYNC_ENVELOPE_BYTES: usize = 1024;
/// Chats into which other users may bring a user: private chats that they opened, groups and
/// channels to which they added the user. Counted separately, so that other users cannot use up the
/// chats that the user may create.
pub const CHATS_BY_OTHERS_MAX: i64 = 300;
/// Upper bound of [`Limits::chats_per_user_max`]. With the chats by others, all chats of a user fit
/// in one `sync` frame; a user with more chats could never sync again.
#[expect(clippy::cast_possible_wrap, reason = "about a thousand")]
pub const CHATS_PER_USER_MAX: i64 =
    ((FRAME_BYTES_MAX - SYNC_ENVELOPE_BYTES) / SYNC_CHAT_BYTES) as i64 - CHATS_BY_OTHERS_MAX;
/// Changes of one chat that `sync` replays. A chat that is further behind gets `reset`.
pub const SYNC_CHANGES_MAX: i64 = 500;
/// Connections that authenticate at the same time, from the look-up of the token to `ready`. When
/// many clients reconnect, they queue here and do not delay the sends of others in the database.
pub const ARRIVALS_AT_ONCE_MAX: usize = 16;
/// Snapshots for `sync` that are read at the same time, for the same reason. Fewer than the
/// connections to the database.
pub const SYNCS_AT_ONCE_MAX: usize = 8;
/// Changes that `sync` reads in one statement.
pub const SYNC_PAGE_MAX: i64 = 100;
/// Bytes of missed changes that are encoded for one client ahead of its reading.
pub const SYNC_PAGE_BYTES_MAX: usize = 512 * 1024;

/// Frames of one user in progress on the database of one replica (`edit_message`, `remove_message`,
/// `read`, `typing`, `watch_presence`, `sync`): a quarter of the default number of connections.
/// Further frames wait, and their sockets are not read meanwhile.
pub const FRAMES_AT_ONCE_PER_USER: usize = 4;
/// Units of work that wait for a connection of one pool. Over it the newest is refused at once.
/// Sixteen connections with units of 2 ms complete such a queue in 64 ms, so a longer queue means
/// that the database is stalled and that the unit would time out. One user's burst of [`READS`]
/// does not fill the queue.
pub const STORE_WAITING_MAX: usize = 512;
/// Connections to Postgres that only sessions use (look-ups of tokens, checks, logins). While all
/// other connections are busy, users still authenticate and ended sessions are still found.
pub const SESSION_CONNECTIONS_MAX: u32 = 4;
/// Users, or pairs of a user and a chat, that a replica counts in memory. Over it, idle ones are
/// removed first.
pub const BUDGET_KEYS_MAX: usize = 100_000;

/// Pause between two groups of connections that a draining replica closes.
pub const DRAIN_WAVE_EVERY: Duration = Duration::from_millis(100);
/// Users that one `watch_presence` may name: several times the users on one screen.
pub const WATCH_USERS_MAX: usize = 200;
/// Users that one connection may watch: more than the members of all chats on the user's screen.
pub const WATCHED_MAX: usize = 1000;
/// Concurrent presence resyncs. When many clients reconnect, they queue here and not in the
/// database.
pub const PRESENCE_RESYNCS_MAX: usize = 16;
/// Users compared in one presence resync; pairs of watcher and watched user in one statement; users
/// whose `last_seen_at` one statement stores.
pub const PRESENCE_BATCH: usize = 500;
/// How long a connection waits for the shared presence to grant or refuse its connection slot. Then
/// the connection is accepted.
pub const PRESENCE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a presence read waits for replicas that have not written their state. Longer than an
/// epoch of Redis takes to settle (2 s), so that a client that watches a user right after a start
/// gets an answer.
pub const PRESENCE_SYNC_MAX: Duration = Duration::from_secs(3);
/// Pause between two sweeps over the lingering users: short beside the linger of 5 s.
pub const PRESENCE_SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Length of the hub's queue of received events, and of the queue of events to publish. Over it an
/// event is dropped, and the hub, or the other replicas, compare all their chats with the store.
pub const BUS_QUEUE_MAX: usize = 65_536;
/// Bytes of an event that is published in full. Of a larger event, only the topics are published,
/// and the subscribers compare them with the store: the output buffer that Redis keeps for each
/// subscriber must hold many events.
pub const BUS_EVENT_BYTES_MAX: usize = 16 * 1024;
/// Topics with an unpublished event that a replica keeps until Redis accepts a resync for them.
/// Over it the other replicas compare all chats with the store.
pub const BUS_DIRTY_TOPICS_MAX: usize = 10_000;
/// Age of a sealed event at which a replica no longer delivers it, and compares its topics with the
/// store instead. Bounds how long an attacker with write access to Redis can replay a copy of an
/// event. Events are published within a second or replaced by a resync; the rest of the minute
/// allows for different clocks.
pub const BUS_EVENT_AGE_MAX: Duration = Duration::from_mins(1);
/// Topics with a stale or unreadable event that a replica keeps until the next comparison. Over it
/// the replica compares all chats. One statement compares up to a thousand chats.
pub const BUS_RECEIVED_TOPICS_MAX: usize = 1000;
/// Pause between two comparisons for events that this version cannot read. The first comparison is
/// immediate; in a rolling update with many such events, a replica makes at most 20 a second.
pub const BUS_UNREADABLE_PAUSE: Duration = Duration::from_millis(50);
/// Events of a chat that wait for a missing event. Over it the newest are dropped, and read from
/// the store together with the missing event.
pub const REORDER_MAX: usize = 256;
/// How long the hub waits for a missing event before it reads the event from the store.
pub const REORDER_WAIT: Duration = Duration::from_millis(50);
/// Pause between two resyncs, which compare the changed chats with the store. Bounds the delay of
/// an event that the bus lost without an error.
pub const HUB_RESYNC_EVERY: Duration = Duration::from_secs(30);
/// Steps of the comparison of all chats. Each resync makes one step, so the comparison is complete
/// every 15 minutes.
pub const FULL_RESYNC_STEPS: usize = 30;
/// How long before the previous resync the search for joins begins. Longer than a unit of work plus
/// the difference between the clocks of replicas.
pub const JOIN_RESYNC_MARGIN: Duration = Duration::from_mins(1);
/// Pause between two checks for connections whose session ended. Bounds how long a connection
/// outlives its session when the bus loses the event.
pub const SESSION_CHECK_EVERY: Duration = Duration::from_secs(3);
/// Pause between two adjustments of the replica's clock to the clock of the database.
pub const CLOCK_EVERY: Duration = Duration::from_mins(1);
/// Pause between two `member_count` frames of a large channel. With 100,000 members online, this is
/// 20,000 frames/s over all replicas.
pub const MEMBER_COUNT_EVERY: Duration = Duration::from_secs(5);
/// Pause between two checks of the log's epoch. Bounds how long clients see a history that a
/// failover or a restore has ended.
pub const EPOCH_CHECK_EVERY: Duration = Duration::from_secs(1);
/// How far the write-ahead log of Postgres must step back to count as another history. More than
/// its largest record (33 page images): a killed server may have written a part of one, and drops
/// it at its next start.
pub const LOG_STEP_BACK_BYTES_MIN: i64 = 512 * 1024;
/// Pause before a replica compares a chat again whose revision in the store is lower than the last
/// delivered one.
pub const LOG_RECHECK_PAUSE: Duration = Duration::from_secs(1);
/// The longest delay after which clients reconnect when the log has a new epoch. Each connection
/// adds 1 ms, so that a thousand clients a second reconnect.
pub const EPOCH_RETURN_MAX: Duration = Duration::from_secs(5);
/// Pause between the comparisons of a chat after a unit of work with an unknown outcome.
pub const RESYNC_EVERY: Duration = Duration::from_secs(2);
/// Comparisons of such a chat after the first, which is immediate. The last comparison comes after
/// the longest unit of work (4 s), which may have been in progress at the first.
pub const RESYNC_REPEATS: u32 = 3;
/// Chats and users that wait for such comparisons. Over it all chats are compared.
pub const RESYNC_TOPICS_MAX: usize = 10_000;
/// Pause before the hub retries a failed read of missing events.
pub const HEAL_RETRY: Duration = Duration::from_secs(1);

/// Messages in one commit. Larger batches do not make a message cheaper.
pub const APPEND_BATCH_MAX: usize = 128;
/// How long an appender waits for as many messages as the previous batch had. Shorter than a commit
/// on a busy disk.
pub const APPEND_GATHER_MAX: Duration = Duration::from_millis(2);
/// Messages in the queue of an appender. Over it a send fails with `503`.
pub const APPEND_QUEUE_MAX: usize = 4096;
/// Appenders of a replica. A chat always belongs to the same appender, which keeps its sends in
/// order.
pub const APPENDERS: usize = 2;

/// How long a batch waits for the row lock of a chat before it commits without that chat's
/// messages. The server's transactions hold a row lock for a few milliseconds. The other messages
/// of the batch are delayed by at most twice this time.
pub const APPEND_LOCK_MAX: Duration = Duration::from_millis(50);
/// Lanes of a replica: chats whose messages wait for the row lock outside the batches. Over it a
/// send to another locked chat fails with `503`.
pub const LANES_MAX: usize = 32;
/// Lanes that use a database connection at the same time. Each appender has connections of its own
/// besides the pool.
pub const LANES_AT_ONCE_MAX: usize = 8;
/// Messages in one lane. Over it a send fails with `503`. All lanes together hold as many messages
/// as the queues of the appenders.
pub const LANE_QUEUE_MAX: usize = 256;

/// Lifetime of a resolved token in the session cache of a single replica, where the end of a
/// session removes the token at once.
pub const SESSION_CACHE_LIFE: Duration = Duration::from_secs(30);
/// Lifetime of a resolved token in the memory of one of several replicas. Together with
/// [`SESSION_SHARED_LIFE`], it bounds how long requests of an ended session succeed if Redis fails
/// while the session ends: 10 s.
pub const SESSION_LOCAL_LIFE: Duration = Duration::from_secs(2);
/// Lifetime of a resolved token in Redis.
pub const SESSION_SHARED_LIFE: Duration = Duration::from_secs(8);
/// Pause before a replica retries a failed removal of a token from Redis.
pub const SESSION_REMOVE_RETRY: Duration = Duration::from_millis(500);
/// Concurrent look-ups of tokens in the store. When many clients reconnect, they queue here and not
/// in the pool.
pub const RESOLVES_AT_ONCE_MAX: usize = 8;
/// Entries of the session cache.
pub const SESSION_CACHE_MAX: u64 = 100_000;
/// The shortest pause between two writes of the `last_seen_at` of a session or of a connected user.
pub const LAST_SEEN_EVERY: Duration = Duration::from_mins(1);
/// How long the previous refresh token still works, in case the answer to its use was lost.
pub const REFRESH_GRACE: Duration = Duration::from_secs(10);
/// Spent refresh tokens that are kept for a session, the most recent ones. The reuse of one shows
/// that it was stolen and ends the session; an older token is unknown. Without this bound, the
/// deletion of a session that was refreshed for years would exceed its deadline.
pub const SPENT_TOKENS_MAX: i64 = 32;
/// How many times a login or a change of the account verifies the password when another request
/// changes it meanwhile. Then the request fails with `503`.
pub const VERIFY_TRIES_MAX: usize = 3;
/// Keys in the memory of the rate limiter. Over it, idle ones are removed first.
pub const LIMITER_KEYS_MAX: usize = 100_000;

/// Rows that a clean-up job removes in one transaction.
pub const JOB_BATCH: i64 = 500;
/// How long the request that removes an account waits until the account has left its chats: enough
/// for a hundred chats, and shorter than [`REQUEST_MAX`]. The rest is done after the answer.
pub const REMOVAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// Chats that removed accounts leave at the same time on a replica. Each uses a database connection
/// for a moment.
pub const DEPARTURES_AT_ONCE_MAX: usize = 2;
/// Pause between two runs of the clean-up jobs.
pub const CLEANUP_EVERY: Duration = Duration::from_mins(1);
/// Pause before a replica retries a clean-up that another replica is running.
pub const CLEANUP_RETRY: Duration = Duration::from_secs(1);
/// How long the lease of a worker is valid without a renewal. Longer than a stall of the database
/// that the server survives, so that such a stall does not move the work to another replica.
pub const WORKER_LEASE: Duration = Duration::from_secs(30);
/// Pause between two renewals of a worker's lease. Two renewals in a row can fail.
pub const WORKER_LEASE_RENEWAL: Duration = Duration::from_secs(8);
/// Pause between two rounds of a consumer that has applied everything.
pub const CONSUMER_EVERY: Duration = Duration::from_secs(1);
/// Chats that a consumer reads in one statement.
pub const CONSUMER_BATCH: i64 = 1_000;
/// How long expired sessions and invites are kept. A session that a wrong clock takes for expired
/// still exists once the clock is corrected.
pub const CLEANUP_GRACE: Duration = Duration::from_hours(24);
/// How far a clock may differ from the monotonic time between two runs of the clean-up jobs. More
/// than a clock that is slewed differs.
pub const CLOCK_JUMP_MAX: Duration = Duration::from_mins(5);
/// How long a clock must be steady after a jump before the clean-up jobs remove expired rows.
pub const CLOCK_TRUST_AFTER: Duration = Duration::from_hours(1);
/// Lifetime of the tombstones of members who left a chat. A client that was away for longer gets
/// `reset`.
pub const TOMBSTONE_LIFE: Duration = Duration::from_hours(30 * 24);

/// The bounds that an operator can change. Their defaults are in the list of the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions of a user. A further login ends the oldest session.
    pub sessions_per_user_max: i64,
    /// Open invites of a user.
    pub invites_per_user_max: i64,
    /// Chats that a user created or joined; at most [`CHATS_PER_USER_MAX`]. A user who has as many
    /// chats of any origin cannot be added to a group or channel.
    pub chats_per_user_max: i64,
    /// Members of a group.
    pub group_members_max: i64,
    /// Members of a channel up to which every member gets the event of each join, leave and change
    /// of role. In a larger channel only the owner and the admins get these events, and the other
    /// members get `member_count` frames: 10,000 joins in a row would otherwise cost 50 million
    /// frames.
    pub channel_events_members_max: i64,
    /// Entries of a page: chats, members, users, messages, changes.
    pub page_max: i64,
    /// WebSocket connections of a user.
    pub connections_per_user_max: usize,
    /// Connections of this replica, HTTP and WebSocket.
    pub connections_max: usize,
    /// Connections of one address whose clients have not authenticated. An IPv6 /64 counts as one
    /// address.
    pub connections_per_address_max: usize,
    /// Lifetime of an access token.
    pub token_life: Duration,
    /// Lifetime of a refresh token, and so of a session that is not refreshed.
    pub refresh_life: Duration,
    /// How often clients send `ping`. A connection that is silent for twice as long is closed.
    pub heartbeat_interval: Duration,
    /// How long a user stays online after the last connection ended. A change of networks takes a
    /// few seconds.
    pub presence_linger: Duration,
    /// Whether rate limits apply.
    pub rate_limits: bool,
}

/// The timeouts of a listener's connections. Constants, except in tests.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// From the accept to the end of the first request head.
    pub first_head: Duration,
    /// Without a request in progress.
    pub idle: Duration,
    /// While the client reads nothing of an answer.
    pub stall: Duration,
}

impl Default for ConnectionTimeouts {
    fn default() -> Self {
        Self { first_head: FIRST_HEAD_MAX, idle: CONNECTION_IDLE_MAX, stall: ANSWER_STALL_MAX }
    }
}

/// The cost of one password hash (argon2id, one lane). A constant, except in tests.
#[derive(Clone, Copy, Debug)]
pub struct PasswordCost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl Default for PasswordCost {
    /// The minimum of OWASP's Password Storage Cheat Sheet.
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_chats_that_a_user_can_have_fit_in_one_sync_frame() {
        let chats_max = usize::try_from(CHATS_PER_USER_MAX + CHATS_BY_OTHERS_MAX).unwrap();
        assert!(chats_max <= SYNC_CHATS_MAX);

        let chats: serde_json::Map<String, serde_json::Value> = (0..chats_max as u128)
            .map(|number| {
                (uuid::Uuid::from_u128(u128::MAX - number).to_string(), json!(999_999_999))
            })
            .collect();
        let id = "x".repeat(64);
        let frame =
            json!({ "type": "sync", "id": id, "epoch": id, "detail": true, "chats": chats })
                .to_string();
        assert!(frame.len() <= FRAME_BYTES_MAX, "{} bytes", frame.len());
        assert!(
            frame.len() + SYNC_CHAT_BYTES + SYNC_ENVELOPE_BYTES > FRAME_BYTES_MAX,
            "one more chat would not fit"
        );
    }
}
