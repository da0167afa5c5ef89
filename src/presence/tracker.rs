//! The users of this replica: users enter, leave, linger, and are withdrawn.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::PresenceTracker;
use crate::cluster::{Entered, TooMany};
use crate::model::limits::{LAST_SEEN_EVERY, PRESENCE_BATCH, PRESENCE_SWEEP_EVERY};
use crate::model::{Event, Timestamp, UserId};

/// The users that linger, each with the end of the linger and the time at which the user was last
/// seen.
pub(super) type Lingering = HashMap<UserId, (Instant, Timestamp)>;

/// Removes the users whose linger is over. Returns each with the time at which the user was last
/// seen.
fn take_due(lingering: &mut Lingering, now: Instant) -> Vec<(UserId, Timestamp)> {
    let due = lingering.extract_if(|_, (until, _)| *until <= now);
    due.map(|(user, (_, seen_at))| (user, seen_at)).collect()
}

impl PresenceTracker {
    /// Takes a connection slot of a user. Announces a user that was offline on this replica.
    ///
    /// # Errors
    /// The user has `max` connections on all replicas.
    pub async fn enter(&self, user: UserId, max: usize) -> Result<(), TooMany> {
        if self.shared.enter(user, max).await? == Entered::First {
            self.bus.publish(Event::Presence(user));
        }
        Ok(())
    }

    /// Gives a connection slot back. After the last one on this replica, the user lingers.
    pub fn leave(&self, user: UserId) {
        if self.shared.leave(user) {
            // A user that left, returned and left again lingers from now on.
            self.lingering.lock().insert(user, (Instant::now() + self.linger, self.clock.now()));
            self.left.notify_one();
        }
    }

    /// How long the slots of a killed replica count: see [`crate::cluster::Presence::slot_ttl`].
    pub fn slot_ttl(&self) -> Duration {
        self.shared.slot_ttl()
    }

    /// Withdraws and announces users whose linger is over, until `stop`.
    pub(super) async fn withdraw_lingering(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.left.notified()).await.is_some() {
            while !self.lingering.lock().is_empty() {
                if stop
                    .run_until_cancelled(tokio::time::sleep(PRESENCE_SWEEP_EVERY))
                    .await
                    .is_none()
                {
                    return;
                }

                let due = take_due(&mut self.lingering.lock(), Instant::now());
                for batch in due.chunks(PRESENCE_BATCH) {
                    self.withdraw(batch).await;
                }
            }
        }
    }

    async fn withdraw(&self, users: &[(UserId, Timestamp)]) {
        // Stored first: the resync that the announcement causes reads `last_seen_at`.
        self.store_seen(users).await;

        let users: Vec<UserId> = users.iter().map(|(user, _)| *user).collect();
        for user in self.shared.withdraw(&users).await {
            self.bus.publish(Event::Presence(user));
        }
    }

    /// Stores `last_seen_at` of the connected users once a minute, until `stop`.
    pub(super) async fn store_last_seen(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(LAST_SEEN_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let now = self.clock.now();
            let connected: Vec<_> =
                self.shared.connected().into_iter().map(|user| (user, now)).collect();
            self.store_seen(&connected).await;
        }
    }

    /// Stores `last_seen_at` of the lingering users when this replica stops. They are not
    /// announced: their clients are connecting to another replica, or return to this one.
    pub(super) async fn store_lingering(&self) {
        let lingering = std::mem::take(&mut *self.lingering.lock());
        let lingering: Vec<_> =
            lingering.into_iter().map(|(user, (_, seen_at))| (user, seen_at)).collect();
        self.store_seen(&lingering).await;
    }

    async fn store_seen(&self, users: &[(UserId, Timestamp)]) {
        for batch in users.chunks(PRESENCE_BATCH) {
            if let Err(error) = self.store.set_last_seen(batch).await {
                tracing::warn!(
                    %error,
                    "failed to store last_seen_at; retried when the users disconnect"
                );
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
        let mut lingering = Lingering::new();
        lingering.insert(user, (at(5), Timestamp::from_ms(0)));
        lingering.insert(user, (at(9), Timestamp::from_ms(4000)));

        assert_eq!(take_due(&mut lingering, at(8)), []);
        assert_eq!(take_due(&mut lingering, at(9)), [(user, Timestamp::from_ms(4000))]);
        assert!(lingering.is_empty());
    }
}
