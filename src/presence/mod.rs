//! Presence: which users are online, and which connections of this replica watch them.
//!
//! Four parts, of which each knows only the next:
//!
//! - [`tracker`] follows the connections of this replica. A user is online from the first
//!   connection on. After the last one the user **lingers** for a few seconds, so that a change of
//!   networks changes nothing; then the user is withdrawn and `last_seen_at` is stored.
//! - [`watchers`] remembers which connection watches which user, and what each was last sent.
//! - [`resync`] compares the shared state with that, and sends the differences to the watchers that
//!   still share a chat with the user.
//! - [`crate::cluster::Presence`] holds the state that the replicas share: in memory for one
//!   replica, in Redis for several. There each replica keeps one hash, from user to number of
//!   connections, which counts while the replica's lease is listed.
//!
//! [`Event::Presence`](crate::model::Event::Presence) on the bus says only that the presence of a
//! user may have changed, and goes only where the user is watched: the cost grows with the
//! watchers, not with the community. The event carries no state, so it may be lost or doubled. A
//! lost one is made up for when the hub hears that the bus lost something, and every 30 s: then
//! every watched user is compared.
//!
//! What the shared state answers while Redis is away or was wiped:
//!
//! | situation | `enter` | `online` |
//! |---|---|---|
//! | Redis is away | counts the connections of this replica | fails: nothing changes for the watchers, and a new `watch_presence` is `unavailable` |
//! | Redis was wiped a moment ago | counts the connections of this replica until it is synced, within a second | waits until every replica is synced, or has been silent for 10 s |
//! | a replica was killed | counts its connections for 4 s | its users are offline after 10 s |
//!
//! The hub sees a [`PresenceTracker`]; presence sees the hub's connections as [`Watcher`]s.

mod resync;
mod tracker;
mod watchers;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Bus, Presence};
use crate::model::limits::PRESENCE_RESYNCS_MAX;
use crate::model::{Clock, Timestamp, UserId};
use crate::store::Store;
use tracker::Lingering;
pub use watchers::TooManyWatched;
use watchers::Watchers;

/// A connection that may watch users.
pub trait Watcher: Send + Sync {
    /// Tells the connections of this process apart.
    fn id(&self) -> u64;
    /// The user of the connection.
    fn user_id(&self) -> UserId;
    /// Encodes the presence of a user. Every watcher may get the same bytes.
    fn encode(&self, user: UserId, online: bool, last_seen_at: Option<Timestamp>) -> Bytes;
    /// Queues an encoded frame.
    fn send(&self, frame: &Bytes);
}

/// The presence of this replica's users, and the watchers on this replica.
pub struct PresenceTracker {
    shared: Arc<dyn Presence>,
    store: Store,
    bus: Arc<dyn Bus>,
    clock: Clock,
    linger: Duration,
    lingering: Mutex<Lingering>,
    left: Notify,
    watchers: Watchers,
    /// Users to compare soon.
    due: Mutex<HashSet<UserId>>,
    due_added: Notify,
    resyncs: Semaphore,
}

impl PresenceTracker {
    /// The tracker of a replica that shares `shared` with the others. A user lingers for `linger`.
    /// [`PresenceTracker::run`] must run.
    pub fn new(
        shared: Arc<dyn Presence>,
        store: Store,
        bus: Arc<dyn Bus>,
        clock: Clock,
        linger: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            store,
            watchers: Watchers::new(bus.clone()),
            bus,
            clock,
            linger,
            lingering: Mutex::default(),
            left: Notify::new(),
            due: Mutex::default(),
            due_added: Notify::new(),
            resyncs: Semaphore::new(PRESENCE_RESYNCS_MAX),
        })
    }

    /// Withdraws users that left, stores when users were last seen, and resyncs watchers, until
    /// `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(
            self.withdraw_lingering(&stop),
            self.store_last_seen(&stop),
            self.resync_due(&stop)
        );
        self.store_lingering().await;
    }

    /// Makes a connection watch these users, and returns those that it did not watch yet.
    /// [`PresenceTracker::resync`] must follow: it sends the presence of each, or ends the watch of
    /// a user that shares no chat with the connection's user.
    ///
    /// # Errors
    /// The connection would watch more than
    /// [`WATCHED_MAX`](crate::model::limits::WATCHED_MAX) users.
    pub fn watch(
        &self,
        watcher: &Arc<dyn Watcher>,
        users: &[UserId],
    ) -> Result<Vec<UserId>, TooManyWatched> {
        self.watchers.add(watcher, users)
    }

    /// Ends the watch of these users by a connection.
    pub fn unwatch(&self, connection: u64, users: &[UserId]) {
        self.watchers.remove(connection, users);
    }

    /// Ends every watch of a connection.
    pub fn unwatch_all(&self, connection: u64) {
        self.watchers.remove_all(connection);
    }
}
