//! Presence: which users are online, and which connections of this replica watch them.
//!
//! Four parts, each of which depends only on the next ones:
//!
//! - [`tracker`] follows the connections of this replica. A user is online from the first
//!   connection on. After the last one the user **lingers** for a few seconds, so that a change of
//!   networks changes nothing. Then the user is withdrawn and `last_seen_at` is stored.
//! - [`resync`] compares the shared state with the state that each watcher was last sent. It sends
//!   the differences to the watchers that still share a chat with the user.
//! - [`watchers`] records which connection watches which user, and what state it was last sent.
//! - [`crate::cluster::Presence`] holds the state that the replicas share: in memory for a single
//!   replica, in Redis for several. There each replica keeps one hash, from user to number of
//!   connections, which counts while the replica's lease is listed.
//!
//! [`Event::Presence`](crate::model::Event::Presence) on the bus announces that the presence of a
//! user may have changed. It goes only to replicas where the user is watched: the cost grows with
//! the watchers, not with the community. The event carries no state, so it may be lost or doubled.
//! Every watched user is compared when the bus may have lost an event, and every 30 s.
//!
//! The shared state in case of a failure:
//!
//! - **Redis is unreachable.** `enter` counts the connections of this replica only. `online` fails:
//!   watchers get no changes, and a new `watch_presence` is `unavailable`.
//! - **Redis was just wiped.** `enter` counts the connections of this replica only, until the
//!   replica is synced, within a second. `online` waits up to 3 s until every replica is synced or
//!   is no longer listed (10 s without a renewal), and fails otherwise.
//! - **A replica was killed.** `enter` counts its connections for 4 s more. `online` counts its
//!   users for 10 s more.
//!
//! The hub uses a [`PresenceTracker`]; presence uses the hub's connections as [`Watcher`]s.

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
    /// Identifies the connection within this process.
    fn id(&self) -> u64;
    /// The watching user.
    fn user_id(&self) -> UserId;
    /// Encodes the presence of a user. The bytes may be sent to other watchers, too.
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
    /// Notified after each insertion into `lingering`.
    left: Notify,
    watchers: Watchers,
    /// Users to compare in the next resync.
    due: Mutex<HashSet<UserId>>,
    /// Notified after each insertion into `due`.
    due_added: Notify,
    /// Permits for resyncs.
    resyncs: Semaphore,
}

impl PresenceTracker {
    /// The tracker of a replica. `shared` holds the state of all replicas. A user lingers for
    /// `linger`. [`PresenceTracker::run`] must run.
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

    /// Withdraws users that left, stores `last_seen_at`, and resyncs watchers, until `stop`.
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
    /// The connection would watch more than [`WATCHED_MAX`](crate::model::limits::WATCHED_MAX)
    /// users.
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
