//! Every bound of the server, with its reason. What an operator may change is in [`Limits`]; the
//! rest is constant.

mod rates;

use std::time::Duration;

pub use rates::*;

/// Characters (Unicode scalar values) of a message, after trimming. From the protocol.
pub const TEXT_CHARS_MAX: usize = 4096;
/// Characters of the text shown in the inbox: a line on a wide screen.
pub const SNIPPET_CHARS_MAX: usize = 140;
/// Characters of a user's or chat's name: fits a title bar.
pub const NAME_CHARS_MAX: usize = 100;
/// Characters of a login: lower-case letters, digits, `.`, `_`, `-`.
pub const LOGIN_CHARS_MAX: usize = 64;
/// Fewest characters of a password: NIST SP 800-63B.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Most characters of a password: bounds the work of hashing one.
pub const PASSWORD_CHARS_MAX: usize = 128;
/// Characters of a device's description, shown in the list of sessions.
pub const DEVICE_CHARS_MAX: usize = 100;
/// Characters of a `client_id`. From the protocol.
pub const CLIENT_ID_CHARS_MAX: usize = 64;
/// Characters of an emoji or search query in the directory.
pub const QUERY_CHARS_MAX: usize = 100;

/// Entries of a page that does not say: a screen or two.
pub const PAGE: i64 = 50;
/// Statements that read one page of the directory at most, each of one page's rows. More are needed
/// only where most users whose name begins with the query were listed by their login already; then
/// the page is shorter than was asked.
pub const DIRECTORY_READS_MAX: usize = 10;
/// Members named at once when a group or channel is created: one transaction stays short.
pub const MEMBERS_AT_ONCE_MAX: usize = 100;
/// Most uses of one invite.
pub const INVITE_USES_MAX: i64 = 1000;
/// Longest life of an invite: a month; older links are forgotten, not kept.
pub const INVITE_LIFE_MAX: Duration = Duration::from_hours(30 * 24);
/// Life of an invite that does not say.
pub const INVITE_LIFE: Duration = Duration::from_hours(7 * 24);

/// Bytes of a request body: the longest text in 4-byte characters, each escaped as a surrogate
/// pair, fits (4096 × 12).
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a file of certificates or a key: a bundle of all public authorities is a fifth of it.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time for a client to send a request's head or body.
pub const REQUEST_READ_MAX: Duration = Duration::from_secs(15);
/// Time for a request to be answered once its body is there, and for a frame; then `503` or
/// `unavailable`, whatever the database does. Clients may count on 5 s. What is under way then goes
/// on to its end.
pub const REQUEST_MAX: Duration = Duration::from_millis(4500);

/// Time from the accept of a connection to its first complete request head. Everything before it is
/// without a login, so it is as short as a slow line allows: a TCP handshake that is repeated twice
/// and a head of [`HEAD_BYTES_MAX`].
pub const FIRST_HEAD_MAX: Duration = Duration::from_secs(15);
/// How long a connection may stay open without a request in progress: longer than the 60 s for
/// which load balancers keep theirs, so that they close first and no request meets a connection
/// that is just closing.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(75);
/// How long a client may take no piece of an answer before its connection is closed, as long as
/// [`WRITE_MAX`].
pub const ANSWER_STALL_MAX: Duration = Duration::from_secs(20);
/// Bytes of an answer's body that are handed over at once: what a connection keeps beside the
/// answer itself.
pub const ANSWER_PIECE_BYTES: usize = 16 * 1024;
/// Streams of one HTTP/2 connection at once: what a browser opens for a page, and as many as
/// [`USER_REQUESTS_MAX`].
pub const HTTP2_STREAMS_MAX: u32 = 16;
/// Bytes of one HTTP/2 stream that wait for the connection to write them: two pieces of an answer.
pub const HTTP2_SEND_BYTES_MAX: usize = 2 * ANSWER_PIECE_BYTES;
/// Requests of one user at once on a replica, each from its authentication until the last byte of
/// its answer is taken. An answer has about a MiB at most, so one account holds 16 MiB, over
/// however many connections and streams.
pub const USER_REQUESTS_MAX: usize = 16;
/// How long a request waits for one of its user's [`USER_REQUESTS_MAX`]; then `503`. Shorter than
/// [`REQUEST_MAX`].
pub const USER_REQUEST_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes of text on a page of messages, as stored; one message is always on it. As JSON that is
/// twice as much at most.
pub const PAGE_BYTES_MAX: usize = 512 * 1024;
/// How many times the share of one address the IPv6 /56 around it has: a household has several
/// links.
pub const ADDRESS_SHARES_56: usize = 2;
/// How many times the share of one address the IPv6 /48 around it has: a company has many links.
pub const ADDRESS_SHARES_48: usize = 4;

/// How often the database is asked whether it answers, for the readiness probes.
pub const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// How old the last good answer of the database may be for the replica to be ready: a ping of 2 s
/// may fail, and the next.
pub const HEALTH_STALE: Duration = Duration::from_secs(6);
/// Pause between two warnings about a proxy that is not trusted: a stranger can cause them.
pub const PROXY_WARNING_EVERY: Duration = Duration::from_hours(1);
/// Open files that are no connections of clients: the database, Redis, the log, listeners, and
/// connections just closing.
pub const FILES_RESERVE: usize = 256;

/// Bytes of one WebSocket message from a client: the longest text, escaped, fits.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the `id` of a frame, which the answer repeats: a UUID in text form fits. From the
/// protocol.
pub const FRAME_ID_BYTES_MAX: usize = 64;
/// Bytes of a connection's read buffer. An idle connection costs this; a larger frame grows it.
pub const READ_BUFFER_BYTES: usize = 1024;
/// Bytes that the system is asked to keep for a connection whose client does not read. By itself
/// Linux keeps up to 4 MiB, and a thousand stalled clients would use up what all connections of the
/// machine may hold. The system makes it the double, so 512 KiB, which over a line of 200 ms is 20
/// MBit/s.
pub const SEND_BUFFER_BYTES: u32 = 256 * 1024;
/// Bytes that wait for one slow reader before it is closed with 4413.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that a connection writes at once.
pub const WRITE_BATCH_BYTES_MAX: usize = 64 * 1024;
/// How long a client's system may leave what was sent unacknowledged before the connection is
/// dropped, as long as two heartbeats: by itself Linux tries for a quarter of an hour.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_mins(1);
/// Time for a slow reader to take what was written before its connection is dropped.
pub const WRITE_MAX: Duration = Duration::from_secs(20);
/// Time for a client to authenticate by its first frame. From the protocol.
pub const AUTHENTICATE_MAX: Duration = Duration::from_secs(5);
/// Time for the closing handshake.
pub const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Bad frames in a row that close a connection. From the protocol.
pub const BAD_FRAMES_MAX: u32 = 10;
/// Frames refused as too many, less those accepted since, that close a connection with 4429.
pub const FLOODED_FRAMES_MAX: u32 = 100;
/// Frames of one connection that are worked on at once; further ones wait in the socket.
pub const INFLIGHT_FRAMES_MAX: usize = 32;
/// Chats that one `sync` may name: more than a user can have.
pub const SYNC_CHATS_MAX: usize = 10_000;
/// Bytes of one chat in the `sync` of a client: its id in quotation marks, a colon, a revision
/// below 10⁹ (ten changes a second make that many in three years) and a comma.
pub const SYNC_CHAT_BYTES: usize = 36 + 2 + 1 + 9 + 1;
/// Bytes of a `sync` frame besides its chats: its type, id, epoch and options.
pub const SYNC_ENVELOPE_BYTES: usize = 1024;
/// Chats that other users may bring a user into, by a private chat with them or as a member of
/// theirs. Counted apart, so that nobody uses up the room for the user's own.
pub const CHATS_BY_OTHERS_MAX: i64 = 300;
/// The most that [`Limits::chats_per_user_max`] may be: with those that others brought, all of a
/// user's chats fit in one `sync` frame. A user with more could never come back in sync.
#[expect(clippy::cast_possible_wrap, reason = "about a thousand")]
pub const CHATS_PER_USER_MAX: i64 =
    ((FRAME_BYTES_MAX - SYNC_ENVELOPE_BYTES) / SYNC_CHAT_BYTES) as i64 - CHATS_BY_OTHERS_MAX;
/// Changes of one chat that `sync` replays; a chat further behind gets `reset`.
pub const SYNC_CHANGES_MAX: i64 = 500;
/// Connections let in at once, from the look-up of their token to `ready`: a herd of reconnecting
/// clients queues here, not in front of the sends of others in the database.
pub const ARRIVALS_AT_ONCE_MAX: usize = 16;
/// Reads of snapshots for `sync` at once, for the same reason: fewer than there are connections to
/// the database.
pub const SYNCS_AT_ONCE_MAX: usize = 8;
/// Changes that `sync` reads at once.
pub const SYNC_PAGE_MAX: i64 = 100;
/// Bytes of what one client missed that are encoded before it took those in front of them.
pub const SYNC_PAGE_BYTES_MAX: usize = 512 * 1024;

/// Frames of one user that work on the database at once on one replica (`edit_message`,
/// `remove_message`, `read`, `typing`, `watch_presence`, `sync`): a quarter of the default number
/// of connections. Further ones wait, and their sockets are not read meanwhile.
pub const FRAMES_AT_ONCE_PER_USER: usize = 4;
/// Units of work that wait for one of a pool's connections; over it the newest is refused at once.
/// Sixteen connections that need 2 ms each for a unit work this off in 64 ms, so a longer queue
/// means that the database stands still, and what joined it would be given up after its wait all
/// the same. One user's burst of [`READS`] does not fill it.
pub const STORE_WAITING_MAX: usize = 512;
/// Connections to Postgres for sessions alone (look-ups of tokens, checks, logins), so that
/// whatever requests wait for, users are still recognised and ended sessions still noticed.
pub const SESSION_CONNECTIONS_MAX: u32 = 4;
/// Users, or pairs of user and chat, that a replica counts in its own memory; the idle ones are
/// forgotten first.
pub const BUDGET_KEYS_MAX: usize = 100_000;

/// Pause between two groups of connections that a stopping replica sends away.
pub const DRAIN_WAVE_EVERY: Duration = Duration::from_millis(100);
/// Users that one `watch_presence` may name: what a screen shows, a few times over.
pub const WATCH_USERS_MAX: usize = 200;
/// Users that one connection may watch: the members of every chat that the user has in view, and
/// more.
pub const WATCHED_MAX: usize = 1000;
/// Presence resyncs at once: a herd of reconnecting clients queues here, not in the database.
pub const PRESENCE_RESYNCS_MAX: usize = 16;
/// Users compared in one presence resync, pairs of watcher and watched user in one statement, and
/// users whose `last_seen_at` one statement stores.
pub const PRESENCE_BATCH: usize = 500;
/// How long a connection waits for the shared presence to grant or refuse its slot. Then it is
/// admitted.
pub const PRESENCE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a presence read waits for replicas that have not written their state: longer than an
/// epoch of Redis takes to settle (2 s), so that a client that watches a user right after a start
/// gets an answer.
pub const PRESENCE_SYNC_MAX: Duration = Duration::from_secs(3);
/// Pause between two sweeps over the users that linger: short beside the linger of 5 s.
pub const PRESENCE_SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Arrivals that wait for the hub, and events that wait to be published. Over it an event is
/// dropped, and the hub, or the other replicas, compare all their chats with the store.
pub const BUS_QUEUE_MAX: usize = 65_536;
/// Bytes of an event that is published as such. Of a larger one, only its topics are published, and
/// the subscribers compare them with the store: the output buffer that Redis keeps for a subscriber
/// must hold many events.
pub const BUS_EVENT_BYTES_MAX: usize = 16 * 1024;
/// Topics with an event that could not be published, remembered one by one until Redis takes a
/// resync for them; beyond it the other replicas compare everything with the store.
pub const BUS_DIRTY_TOPICS_MAX: usize = 10_000;
/// Age of a sealed event at which a replica no longer delivers it and compares its topics with the
/// store instead: bounds how long a copy of an event can be replayed by anyone with write access to
/// Redis. An event is published within a second, or replaced by a resync; the rest allows for
/// replicas whose clocks differ.
pub const BUS_EVENT_AGE_MAX: Duration = Duration::from_mins(1);
/// Topics with a stale or an unreadable event that a replica remembers until the next comparison;
/// beyond it the replica compares everything. A comparison is one statement for up to a thousand
/// chats.
pub const BUS_RECEIVED_TOPICS_MAX: usize = 1000;
/// Pause between two comparisons for events that this version cannot read. The first event is
/// compared at once; in a rolling update with many of them, a replica makes 20 comparisons a second
/// at most.
pub const BUS_UNREADABLE_PAUSE: Duration = Duration::from_millis(50);
/// Events of a chat that wait for a missing one. Over it the newest are dropped, to be fetched with
/// the missing one.
pub const REORDER_MAX: usize = 256;
/// How long a missing event may be late before the store is asked for it.
pub const REORDER_WAIT: Duration = Duration::from_millis(50);
/// How often a hub compares the chats that changed with the store, in case the bus lost an event
/// without a sign.
pub const HUB_RESYNC_EVERY: Duration = Duration::from_secs(30);
/// Steps of the comparison of everything, one with each such resync: it is complete every 15
/// minutes.
pub const FULL_RESYNC_STEPS: usize = 30;
/// How long before the last resync a join is searched for: longer than a unit of work, and the
/// clocks of replicas differ.
pub const JOIN_RESYNC_MARGIN: Duration = Duration::from_mins(1);
/// How often a replica asks the store which of its connections' sessions ended: bounds how long a
/// connection outlives its session when the event is lost.
pub const SESSION_CHECK_EVERY: Duration = Duration::from_secs(3);
/// How often a replica sets its clock by the database's.
pub const CLOCK_EVERY: Duration = Duration::from_mins(1);
/// Pause between two `member_count` frames of a large channel: with 100,000 members online, one
/// frame each in this time is 20,000 frames/s over the whole fleet.
pub const MEMBER_COUNT_EVERY: Duration = Duration::from_secs(5);
/// How often a replica looks whether the log is still the one that it served: how long clients may
/// be shown a history that a failover or a restore has ended.
pub const EPOCH_CHECK_EVERY: Duration = Duration::from_secs(1);
/// How far the write-ahead log of Postgres must step back to count as another history: more than
/// its largest record (33 page images), of which a killed server may have written a part that it
/// drops when it starts again.
pub const LOG_STEP_BACK_BYTES_MIN: i64 = 512 * 1024;
/// Pause before a chat is compared again whose revision in the store is lower than the one
/// delivered.
pub const LOG_RECHECK_PAUSE: Duration = Duration::from_secs(1);
/// Longest that a client is asked to stay away when the log has a new epoch: each connection adds 1
/// ms, so that a thousand a second come back.
pub const EPOCH_RETURN_MAX: Duration = Duration::from_secs(5);
/// Pause between the comparisons of a chat that a unit of work with an unknown outcome may have
/// changed.
pub const RESYNC_EVERY: Duration = Duration::from_secs(2);
/// Comparisons of such a chat after the first, which is immediate. The last one comes after the
/// longest unit of work (4 s), which may still have been under way.
pub const RESYNC_REPEATS: u32 = 3;
/// Such chats and users remembered one by one; over it everything is compared.
pub const RESYNC_TOPICS_MAX: usize = 10_000;
/// Pause before the store is asked again for the missing events of a chat, after it failed to
/// answer.
pub const HEAL_RETRY: Duration = Duration::from_secs(1);

/// Messages in one commit: more don't make it cheaper.
pub const APPEND_BATCH_MAX: usize = 128;
/// Longest that a commit waits for as many messages as the one before held: less than a commit
/// takes on a busy disk.
pub const APPEND_GATHER_MAX: Duration = Duration::from_millis(2);
/// Messages that wait for a commit; over it a send is answered `503`.
pub const APPEND_QUEUE_MAX: usize = 4096;
/// Appenders of a replica. A chat always belongs to the same one, which keeps its sends in order.
pub const APPENDERS: usize = 2;

/// How long a batch of messages waits for a chat that another transaction holds, before the batch
/// goes without it. A transaction of the server holds a chat for a few milliseconds; half of what
/// the others of the batch may be delayed by.
pub const APPEND_LOCK_MAX: Duration = Duration::from_millis(50);
/// Chats of a replica that wait for their lock in a lane of their own; over it a send to one more
/// is answered `503`.
pub const LANES_MAX: usize = 32;
/// Lanes that use a connection to the database at once. An appender has connections of its own
/// beside the pool.
pub const LANES_AT_ONCE_MAX: usize = 8;
/// Messages that wait in one lane; over it a send is answered `503`. All lanes together hold what
/// the appenders' queues do.
pub const LANE_QUEUE_MAX: usize = 256;

/// How long a token's session is believed without asking the store, where there is one replica: an
/// end is noticed at once.
pub const SESSION_CACHE_LIFE: Duration = Duration::from_secs(30);
/// How long a replica of many believes its own memory of a token. With [`SESSION_SHARED_LIFE`] it
/// bounds how long an ended session may still be answered when Redis failed at the wrong moment: 10
/// s.
pub const SESSION_LOCAL_LIFE: Duration = Duration::from_secs(2);
/// How long an entry in Redis is believed.
pub const SESSION_SHARED_LIFE: Duration = Duration::from_secs(8);
/// Pause before Redis is told again to forget a token, when it could not be told.
pub const SESSION_FORGET_RETRY: Duration = Duration::from_millis(500);
/// Tokens looked up in the store at once: a herd of reconnecting clients queues here, not in the
/// pool.
pub const RESOLVES_AT_ONCE_MAX: usize = 8;
/// Sessions remembered.
pub const SESSION_CACHE_MAX: u64 = 100_000;
/// How often the `last_seen_at` of a session, or of a connected user, is written at most.
pub const LAST_SEEN_EVERY: Duration = Duration::from_mins(1);
/// How long the refresh token before the current one may come again, because its answer was lost.
pub const REFRESH_GRACE: Duration = Duration::from_secs(10);
/// Spent refresh tokens that are kept of a session, the most recent ones: one that comes again
/// shows that it was stolen, and ends the session. A token that was spent longer ago than these is
/// unknown. Without a bound, a session that is refreshed for years could not be deleted in time.
pub const SPENT_TOKENS_MAX: i64 = 32;
/// Times that a login, or a change of the account, verifies the password again because it changed
/// meanwhile; then `503`.
pub const VERIFY_TRIES_MAX: usize = 3;
/// Keys that the rate limiter remembers; the idle ones are forgotten first.
pub const LIMITER_KEYS_MAX: usize = 100_000;

/// Rows that a cleaning job removes in one transaction.
pub const JOB_BATCH: i64 = 500;
/// How long the removal of an account waits until its chats are left: enough for a hundred chats,
/// so that the caller sees it done, and short of [`REQUEST_MAX`]. Leaving more chats goes on after
/// the answer.
pub const REMOVAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// Chats that removed accounts leave at once on a replica: each takes a connection to the database
/// for a moment.
pub const DEPARTURES_AT_ONCE_MAX: usize = 2;
/// How often the cleanup runs.
pub const CLEANUP_EVERY: Duration = Duration::from_mins(1);
/// How long expired sessions and invites are kept: a session that a wrong clock took for expired
/// still exists once the clock is right.
pub const CLEANUP_GRACE: Duration = Duration::from_hours(24);
/// How far a clock may move against the time that passed between two rounds of the cleaning jobs:
/// more than any slew.
pub const CLOCK_JUMP_MAX: Duration = Duration::from_mins(5);
/// How long a clock that jumped has to be steady before the cleaning jobs believe it.
pub const CLOCK_TRUST_AFTER: Duration = Duration::from_hours(1);
/// How long it is remembered who left a chat; a client away for longer gets `reset`.
pub const TOMBSTONE_LIFE: Duration = Duration::from_hours(30 * 24);

/// What an operator may change. The defaults are in [`Limits::default`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions of a user; one more ends the oldest.
    pub sessions_per_user_max: i64,
    /// Open invites of a user.
    pub invites_per_user_max: i64,
    /// Chats of a user by their own act; [`CHATS_PER_USER_MAX`] at most. Nobody is added to a group
    /// or channel who has as many altogether.
    pub chats_per_user_max: i64,
    /// Members of a group.
    pub group_members_max: i64,
    /// Members of a channel up to which every member gets the event of each join, leave and change
    /// of role. In a larger one only owner and admins get these, and the members get `member_count`
    /// now and then: 10,000 joins in a row would otherwise cost 50 million frames.
    pub channel_events_members_max: i64,
    /// Entries of a page: chats, members, users, messages, changes.
    pub page_max: i64,
    /// WebSocket connections of a user.
    pub connections_per_user_max: usize,
    /// Connections of this replica, HTTP and WebSocket.
    pub connections_max: usize,
    /// Connections of one address that have not authenticated yet; an IPv6 /64 counts as one
    /// address.
    pub connections_per_address_max: usize,
    /// Life of an access token.
    pub token_life: Duration,
    /// Life of a refresh token, and so of a session that nobody refreshes.
    pub refresh_life: Duration,
    /// How often clients are told to `ping`; silent for twice as long, they are closed.
    pub heartbeat_interval: Duration,
    /// How long a user whose last connection ended still counts as online: a change of networks
    /// takes a few seconds.
    pub presence_linger: Duration,
    /// Whether rate limits apply.
    pub rate_limits: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_per_user_max: 10,
            invites_per_user_max: 20,
            chats_per_user_max: 1000,
            group_members_max: 20,
            channel_events_members_max: 1000,
            page_max: 100,
            connections_per_user_max: 20,
            connections_max: 20_000,
            connections_per_address_max: 1000,
            token_life: Duration::from_hours(24),
            refresh_life: Duration::from_hours(30 * 24),
            heartbeat_interval: Duration::from_secs(30),
            presence_linger: Duration::from_secs(5),
            rate_limits: true,
        }
    }
}

/// How patient a listener is with a connection. Constants, except in tests.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the accept to the first complete request head.
    pub first_head: Duration,
    /// Without a request in progress.
    pub idle: Duration,
    /// While an answer waits for its client to take a piece of it.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first_head: FIRST_HEAD_MAX, idle: CONNECTION_IDLE_MAX, stall: ANSWER_STALL_MAX }
    }
}

/// What one password hash costs (argon2id, one lane). A constant, except in tests.
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
        assert!(Limits::default().chats_per_user_max <= CHATS_PER_USER_MAX);
        let most = usize::try_from(CHATS_PER_USER_MAX + CHATS_BY_OTHERS_MAX).unwrap();
        assert!(most <= SYNC_CHATS_MAX);

        let chats: serde_json::Map<String, serde_json::Value> = (0..most as u128)
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
            "the bound wastes no room"
        );
    }
}
