//! Every bound of the server, with its reason. What an operator may change is in [`Limits`]; the rest is constant.

use std::time::Duration;

use super::Timestamp;

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
/// Statements that read one page of the directory at most, each of one page's rows. More are needed only where most users
/// whose name begins with the query were listed by their login already; then the page is shorter than was asked.
pub const DIRECTORY_READS_MAX: usize = 10;
/// Members named at once when a group or channel is created: one transaction stays short.
pub const MEMBERS_AT_ONCE_MAX: usize = 100;
/// Most uses of one invite.
pub const INVITE_USES_MAX: i64 = 1000;
/// Longest life of an invite: a month; older links are forgotten, not kept.
pub const INVITE_LIFE_MAX: Duration = Duration::from_hours(30 * 24);
/// Life of an invite that does not say.
pub const INVITE_LIFE: Duration = Duration::from_hours(7 * 24);

/// Bytes of a request body: the longest text in 4-byte characters, each escaped as a surrogate pair, fits (4096 × 12).
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time for a client to send a request's head or body.
pub const REQUEST_READ_MAX: Duration = Duration::from_secs(15);
/// Time for a request to be answered once its body is there, and for a frame; then `503` or `unavailable`, whatever the
/// database does. Clients may count on 5 s. What is under way then goes on to its end.
pub const REQUEST_MAX: Duration = Duration::from_millis(4500);

/// Bytes of one WebSocket message from a client: the longest text, escaped, fits.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a connection's read buffer. An idle connection costs this; a larger frame grows it.
pub const READ_BUFFER_BYTES: usize = 1024;
/// Bytes that the system is asked to keep for a connection whose client does not read. By itself Linux keeps up to 4 MiB,
/// and a thousand stalled clients would use up what all connections of the machine may hold. The system makes it the
/// double, so 512 KiB, which over a line of 200 ms is 20 MBit/s.
pub const SEND_BUFFER_BYTES: u32 = 256 * 1024;
/// Bytes that wait for one slow reader before it is closed with 4413.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that a connection writes at once.
pub const WRITE_BATCH_BYTES_MAX: usize = 64 * 1024;
/// How long a client's system may leave what was sent unacknowledged before the connection is dropped, as long as two
/// heartbeats: by itself Linux tries for a quarter of an hour.
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
/// Bytes of one chat in the `sync` of a client: its id in quotation marks, a colon, a revision below 10⁹ (ten changes a
/// second make that many in three years) and a comma.
pub const SYNC_CHAT_BYTES: usize = 36 + 2 + 1 + 9 + 1;
/// Bytes of a `sync` frame besides its chats: its type, id, epoch and options.
pub const SYNC_ENVELOPE_BYTES: usize = 1024;
/// Chats that other users may bring a user into, by a private chat with them or as a member of theirs. Counted apart, so
/// that nobody uses up the room for the user's own.
pub const CHATS_BY_OTHERS_MAX: i64 = 300;
/// The most that [`Limits::chats_per_user_max`] may be: with those that others brought, all of a user's chats fit in one
/// `sync` frame. A user with more could never come back in sync.
#[expect(clippy::cast_possible_wrap, reason = "about a thousand")]
pub const CHATS_PER_USER_MAX: i64 =
    ((FRAME_BYTES_MAX - SYNC_ENVELOPE_BYTES) / SYNC_CHAT_BYTES) as i64 - CHATS_BY_OTHERS_MAX;
/// Changes of one chat that `sync` replays; a chat further behind gets `reset`.
pub const SYNC_CHANGES_MAX: i64 = 500;
/// Connections let in at once, from the look-up of their token to `ready`: a herd of reconnecting clients queues here, not
/// in front of the sends of others in the database.
pub const ARRIVALS_AT_ONCE_MAX: usize = 16;
/// Reads of snapshots for `sync` at once, for the same reason: fewer than there are connections to the database.
pub const SYNCS_AT_ONCE_MAX: usize = 8;
/// Changes that `sync` reads at once.
pub const SYNC_PAGE_MAX: i64 = 100;
/// Bytes of what one client missed that are encoded before it took those in front of them.
pub const SYNC_PAGE_BYTES_MAX: usize = 512 * 1024;

/// Frames of one user that work on the database at once on one replica (`edit_message`, `remove_message`, `read`,
/// `typing`, `watch_presence`, `sync`): a quarter of the default number of connections. Further ones wait, and their
/// sockets are not read meanwhile.
pub const FRAMES_AT_ONCE_PER_USER: usize = 4;
/// Units of work that wait for one of a pool's connections; over it the newest is refused at once. Sixteen connections
/// that need 2 ms each for a unit work this off in 64 ms, so a longer queue means that the database stands still, and
/// what joined it would be given up after its wait all the same. One user's burst of [`READS`] does not fill it.
pub const STORE_WAITING_MAX: usize = 512;
/// Connections to Postgres for sessions alone (look-ups of tokens, checks, logins), so that whatever requests wait for,
/// users are still recognised and ended sessions still noticed.
pub const SESSION_CONNECTIONS_MAX: u32 = 4;
/// Users, or pairs of user and chat, that a replica counts in its own memory; the idle ones are forgotten first.
pub const BUDGET_KEYS_MAX: usize = 100_000;

/// Pause between two groups of connections that a stopping replica sends away.
pub const DRAIN_WAVE_EVERY: Duration = Duration::from_millis(100);
/// Users that one `watch_presence` may name: what a screen shows, a few times over.
pub const WATCH_USERS_MAX: usize = 200;
/// Users that one connection may watch: the members of every chat that somebody has in view, and more.
pub const WATCHED_MAX: usize = 1000;
/// Looks at presence that clients asked for at once: a herd of reconnecting clients queues here, not in the database.
pub const LOOKS_AT_ONCE_MAX: usize = 16;
/// Users looked at in one step, pairs of watcher and watched asked for and users noted as seen in one statement.
pub const PRESENCE_BATCH: usize = 500;
/// How long a connection waits for what replicas share to say whether it has a place; then it has one.
pub const PRESENCE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Events that wait for the hub; over it the hub checks its chats against the store.
pub const BUS_QUEUE_MAX: usize = 65_536;
/// Events of a chat that wait for one that is missing before the store is asked.
pub const REORDER_MAX: usize = 256;
/// How long a missing event may be late before the store is asked for it.
pub const REORDER_WAIT: Duration = Duration::from_millis(50);
/// How often a hub compares all its chats with the store, whatever happened.
pub const HUB_CHECK_EVERY: Duration = Duration::from_secs(30);
/// How often a replica asks the store which of its connections' sessions are over, whatever it heard: bounds how long one
/// outlives its session when the news of it is lost.
pub const SESSION_CHECK_EVERY: Duration = Duration::from_secs(3);
/// How often a replica sets its clock by the database's.
pub const CLOCK_EVERY: Duration = Duration::from_mins(1);
/// Pause before the store is asked again for what a chat's subscribers miss, when it could not answer.
pub const HEAL_RETRY: Duration = Duration::from_secs(1);

/// Messages in one commit: more don't make it cheaper.
pub const APPEND_BATCH_MAX: usize = 128;
/// Longest that a commit waits for as many messages as the one before held: less than a commit takes on a busy disk.
pub const APPEND_GATHER_MAX: Duration = Duration::from_millis(2);
/// Messages that wait for a commit; over it a send is answered `503`.
pub const APPEND_QUEUE_MAX: usize = 4096;
/// Appenders of a replica. A chat always belongs to the same one, which keeps its sends in order.
pub const APPENDERS: usize = 2;

/// How long a token's session is believed without asking the store, where there is one replica: an end is noticed at once.
pub const SESSION_CACHE_LIFE: Duration = Duration::from_secs(30);
/// How long a replica of many believes its own memory of a token. With [`SESSION_SHARED_LIFE`] it bounds how long an ended
/// session may still be answered when Redis failed at the wrong moment: 10 s.
pub const SESSION_LOCAL_LIFE: Duration = Duration::from_secs(2);
/// How long an entry in Redis is believed.
pub const SESSION_SHARED_LIFE: Duration = Duration::from_secs(8);
/// Pause before Redis is told again to forget a token, when it could not be told.
pub const SESSION_FORGET_RETRY: Duration = Duration::from_millis(500);
/// Tokens looked up in the store at once: a herd of reconnecting clients queues here, not in the pool.
pub const RESOLVES_AT_ONCE_MAX: usize = 8;
/// Sessions remembered.
pub const SESSION_CACHE_MAX: u64 = 100_000;
/// How often the `last_seen_at` of a session, or of a connected user, is written at most.
pub const LAST_SEEN_EVERY: Duration = Duration::from_mins(1);
/// How long a spent refresh token may come again, because its answer was lost.
pub const REFRESH_GRACE: Duration = Duration::from_secs(10);
/// Keys that the rate limiter remembers; the idle ones are forgotten first.
pub const LIMITER_KEYS_MAX: usize = 100_000;

/// Rows that a cleaning job removes in one transaction.
pub const JOB_BATCH: i64 = 500;
/// How often the cleaning jobs run.
pub const JOB_EVERY: Duration = Duration::from_mins(1);
/// How long it is remembered who left a chat; a client away for longer gets `reset`.
pub const TOMBSTONE_LIFE: Duration = Duration::from_hours(30 * 24);

/// What an operator may change. The defaults are in [`Limits::default`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions of a user; one more ends the oldest.
    pub sessions_per_user_max: i64,
    /// Open invites of a user.
    pub invites_per_user_max: i64,
    /// Chats of a user by their own act; [`CHATS_PER_USER_MAX`] at most. Nobody is added to a group or channel who has as
    /// many altogether.
    pub chats_per_user_max: i64,
    /// Members of a group.
    pub group_members_max: i64,
    /// Entries of a page: chats, members, users, messages, changes.
    pub page_max: i64,
    /// WebSocket connections of a user.
    pub connections_per_user_max: usize,
    /// Connections of this replica, HTTP and WebSocket.
    pub connections_max: usize,
    /// Life of an access token.
    pub token_life: Duration,
    /// Life of a refresh token, and so of a session that nobody refreshes.
    pub refresh_life: Duration,
    /// How often clients are told to `ping`; silent for twice as long, they are closed.
    pub heartbeat_interval: Duration,
    /// How long a user whose last connection ended still counts as online: a change of networks takes a few seconds.
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
            page_max: 100,
            connections_per_user_max: 20,
            connections_max: 20_000,
            token_life: Duration::from_hours(24),
            refresh_life: Duration::from_hours(30 * 24),
            heartbeat_interval: Duration::from_secs(30),
            presence_linger: Duration::from_secs(5),
            rate_limits: true,
        }
    }
}

/// A rate: `burst` at once, then one each `every` (GCRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The name of the rate in keys and metrics.
    pub name: &'static str,
    /// How many at once.
    pub burst: u32,
    /// The pause that earns one more.
    pub every: Duration,
    /// What a replica allows that counts alone, because Redis is away.
    pub alone: Alone,
}

/// How a replica counts alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// As ever: that people can write to each other is worth more than the exact limit.
    AsEver,
    /// A quarter, and at most five at once: guesses must not become cheaper by taking Redis away.
    Strict,
}

impl Rate {
    /// The rate of a replica that counts alone.
    #[must_use]
    pub fn alone(self) -> Self {
        match self.alone {
            Alone::AsEver => self,
            Alone::Strict => Self { burst: (self.burst / 4).clamp(1, 5), every: self.every * 4, ..self },
        }
    }
}

/// One counter under a [`Rate`]: a leaky bucket that remembers only when it will be full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at_ms: i64,
}

impl Bucket {
    /// Takes one, or says in how many milliseconds one will be free.
    ///
    /// # Errors
    /// The time to wait, in milliseconds.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> Result<(), u64> {
        let every = i64::try_from(rate.every.as_millis()).unwrap_or(i64::MAX);
        let tolerance = every.saturating_mul(i64::from(rate.burst) - 1);
        let from = self.full_at_ms.max(now.as_ms());
        let over = from - now.as_ms() - tolerance;
        if over > 0 {
            return Err(u64::try_from(over).unwrap_or(0));
        }
        self.full_at_ms = from.saturating_add(every);
        Ok(())
    }

    /// Whether it is as if nothing had ever been taken.
    pub fn is_full(&self, now: Timestamp) -> bool {
        self.full_at_ms <= now.as_ms()
    }
}

/// Sends, edits and removals of a user: faster than anyone types, slow enough for readers.
pub const SENDS: Rate = Rate { name: "sends", burst: 60, every: Duration::from_millis(50), alone: Alone::AsEver };
/// Other changes by a user: chats, members, invites, the account.
pub const CHANGES: Rate = Rate { name: "changes", burst: 60, every: Duration::from_millis(200), alone: Alone::AsEver };
/// Attempts to log in to one account, right or wrong: ten guesses, then one in ten seconds.
pub const LOGINS_PER_ACCOUNT: Rate =
    Rate { name: "logins_per_account", burst: 10, every: Duration::from_secs(10), alone: Alone::Strict };
/// Attempts to log in from one address: an office behind one router.
pub const LOGINS_PER_ADDRESS: Rate =
    Rate { name: "logins_per_address", burst: 60, every: Duration::from_secs(1), alone: Alone::Strict };
/// Registrations from one address.
pub const REGISTRATIONS_PER_ADDRESS: Rate =
    Rate { name: "registrations_per_address", burst: 30, every: Duration::from_secs(10), alone: Alone::Strict };
/// Look-ups of invites from one address: nobody guesses a code of 128 bits, and nobody shall try.
pub const INVITE_LOOKUPS_PER_ADDRESS: Rate =
    Rate { name: "invite_lookups_per_address", burst: 60, every: Duration::from_secs(1), alone: Alone::Strict };
/// Refreshes from one address.
pub const REFRESHES_PER_ADDRESS: Rate =
    Rate { name: "refreshes_per_address", burst: 120, every: Duration::from_millis(500), alone: Alone::Strict };
/// Frames of one connection.
pub const FRAMES: Rate = Rate { name: "frames", burst: 300, every: Duration::from_millis(10), alone: Alone::AsEver };
/// `watch_presence` of a user: a few devices that come back at once, each with what it shows.
pub const WATCHES: Rate = Rate { name: "watches", burst: 60, every: Duration::from_millis(200), alone: Alone::AsEver };
/// Reads of a user on one replica: every GET, read markers, and `typing` that is not a repetition. A client that comes
/// back to a thousand chats reads a screenful of them at once, and the rest as its user scrolls.
pub const READS: Rate = Rate { name: "reads", burst: 300, every: Duration::from_millis(20), alone: Alone::AsEver };
/// Connections and `sync`s of a user on one replica: all devices that a user may connect come back three times at once.
pub const ARRIVALS: Rate =
    Rate { name: "arrivals", burst: 120, every: Duration::from_millis(250), alone: Alone::AsEver };
/// `typing` of a user in one chat that is passed on. From the protocol.
pub const TYPING: Rate = Rate { name: "typing", burst: 1, every: Duration::from_secs(2), alone: Alone::AsEver };

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
            .map(|number| (uuid::Uuid::from_u128(u128::MAX - number).to_string(), json!(999_999_999)))
            .collect();
        let id = "x".repeat(64);
        let frame = json!({ "type": "sync", "id": id, "epoch": id, "detail": true, "chats": chats }).to_string();
        assert!(frame.len() <= FRAME_BYTES_MAX, "{} bytes", frame.len());
        assert!(frame.len() + SYNC_CHAT_BYTES + SYNC_ENVELOPE_BYTES > FRAME_BYTES_MAX, "the bound wastes no room");
    }
}
