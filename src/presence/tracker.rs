//! The users of this replica: they enter, leave, linger, and are withdrawn.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::PresenceTracker;
use crate::cluster::{Entered, TooMany};
use crate::model::limits::{LAST_SEEN_EVERY, PRESENCE_BATCH, PRESENCE_SWEEP_EVERY};
use crate::model::{Event, Timestamp, UserId};

/// Users whose last connection ended, until they are withdrawn.
pub(super) struct Lingering {
    linger: Duration,
    /// Until when each user lingers, and when the user was last seen.
    users: Mutex<HashMap<UserId, (Instant, Timestamp)>>,
    added: Notify,
}

impl Lingering {
    pub fn new(linger: Duration) -> Self {
        Self { linger, users: Mutex::default(), added: Notify::new() }
    }

    /// A user that left again lingers anew.
    fn add(&self, user: UserId, now: Instant, seen_at: Timestamp) {
        self.users.lock().insert(user, (now + self.linger, seen_at));
        self.added.notify_one();
    }

    /// Removes the users whose time is over, and returns them with when they were last seen.
    fn take_due(&self, now: Instant) -> Vec<(UserId, Timestamp)> {
        let due = |_: &UserId, (until, _): &mut (Instant, Timestamp)| *until <= now;
        self.users.lock().extract_if(due).map(|(user, (_, seen_at))| (user, seen_at)).collect()
    }

    fn is_empty(&self) -> bool {
        self.users.lock().is_empty()
    }
}

impl PresenceTracker {
    /// Takes a slot for one more connection of a user.
    ///
    /// # Errors
    /// The user has `max` connections on all replicas.
    pub async fn enter(&self, user: UserId, max: usize) -> Result<(), TooMany> {
        if self.shared.enter(user, max).await? == Entered::First {
            self.bus.publish(Event::Presence(user));
        }
        Ok(())
    }

    /// Gives the slot back. After the user's last one, the user lingers.
    pub fn leave(&self, user: UserId) {
        if self.shared.leave(user) {
            self.lingering.add(user, Instant::now(), self.clock.now());
        }
    }

    /// How long the slots of a killed replica count: see [`crate::cluster::Presence::slot_ttl`].
    pub fn slot_ttl(&self) -> Duration {
        self.shared.slot_ttl()
    }

    /// Withdraws and announces users whose linger is over, until `stop`.
    pub(super) async fn withdraw_lingering(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.lingering.added.notified()).await.is_some() {
            while !self.lingering.is_empty() {
                if stop.run_until_cancelled(tokio::time::sleep(PRESENCE_SWEEP_EVERY)).await.is_none() {
                    return;
                }
                for batch in self.lingering.take_due(Instant::now()).chunks(PRESENCE_BATCH) {
                    self.withdraw(batch).await;
                }
            }
        }
    }

    async fn withdraw(&self, users: &[(UserId, Timestamp)]) {
        // Stored before it is announced: the watchers get `last_seen_at` with the announcement.
        self.store_seen(users).await;

        let users: Vec<UserId> = users.iter().map(|(user, _)| *user).collect();
        for user in self.shared.withdraw(&users).await {
            self.bus.publish(Event::Presence(user));
        }
    }

    /// Stores once a minute that the connected users are seen, until `stop`.
    pub(super) async fn store_last_seen(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(LAST_SEEN_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let now = self.clock.now();
            let connected: Vec<_> = self.shared.connected().into_iter().map(|user| (user, now)).collect();
            self.store_seen(&connected).await;
        }
    }

    /// Stores when the lingering users were last seen, at the end of this replica. They are not
    /// announced: their clients are on their way to another replica, or come back to this one.
    pub(super) async fn store_lingering(&self) {
        let lingering: Vec<_> = {
            let users = self.lingering.users.lock();
            users.iter().map(|(user, (_, seen_at))| (*user, *seen_at)).collect()
        };
        self.store_seen(&lingering).await;
    }

    async fn store_seen(&self, users: &[(UserId, Timestamp)]) {
        for batch in users.chunks(PRESENCE_BATCH) {
            if let Err(error) = self.store.note_seen(batch).await {
                tracing::warn!(%error, "failed to store last_seen_at; retried when the users disconnect");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_comes_back_and_leaves_again_lingers_anew() {
        let (user, start) = (UserId::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        let lingering = Lingering::new(Duration::from_secs(5));
        lingering.add(user, at(0), Timestamp::from_ms(0));
        lingering.add(user, at(4), Timestamp::from_ms(4000));
        assert_eq!(lingering.take_due(at(8)), []);
        assert_eq!(lingering.take_due(at(9)), [(user, Timestamp::from_ms(4000))]);
        assert!(lingering.is_empty());
    }
}
