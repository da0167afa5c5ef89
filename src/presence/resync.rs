//! Compares the shared presence with the states that the watchers were sent, and sends them the
//! differences.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::PresenceTracker;
use super::watchers::Update;
use crate::metrics;
use crate::model::limits::{HEAL_RETRY, PRESENCE_BATCH};
use crate::model::{Error, Result, Timestamp, UserId};

impl PresenceTracker {
    /// Compares these users, and sends their state to the watchers that were sent another state, or
    /// none.
    ///
    /// # Errors
    /// `unavailable`: some watchers may have an outdated state.
    pub async fn resync(&self, users: &[UserId]) -> Result<()> {
        let _permit = self.resyncs.acquire().await.map_err(Error::internal)?;

        for batch in users.chunks(PRESENCE_BATCH) {
            // Numbered before the read: of two results, the one with the higher number is newer.
            let number = self.watchers.begin_resync();
            let online = self.shared.online(batch).await?;
            let updates = self.watchers.record(number, batch.iter().copied().zip(online));

            for updates in updates.chunks(PRESENCE_BATCH) {
                self.send(updates).await?;
            }
        }
        Ok(())
    }

    /// Has [`Self::run`] compare a user, if the user is watched on this replica.
    pub fn resync_soon(&self, user: UserId) {
        if self.watchers.is_watched(user) {
            self.add_due([user]);
        }
    }

    /// Has [`Self::run`] compare every user that is watched on this replica.
    pub fn resync_all_soon(&self) {
        self.add_due(self.watchers.watched());
    }

    fn add_due(&self, users: impl IntoIterator<Item = UserId>) {
        self.due.lock().extend(users);
        self.due_added.notify_one();
    }

    /// Compares the users that are due, until `stop`.
    pub(super) async fn resync_due(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let due: Vec<UserId> = std::mem::take(&mut *self.due.lock()).into_iter().collect();
            if due.is_empty() {
                stop.run_until_cancelled(self.due_added.notified()).await;
            } else if let Err(error) = self.resync(&due).await {
                tracing::debug!(%error, "failed to compare presence; retrying in a second");
                self.add_due(due);
                stop.run_until_cancelled(tokio::time::sleep(HEAL_RETRY)).await;
            }
        }
    }

    /// Sends updates to the watchers that share a chat with the user. Ends the other watches.
    async fn send(&self, updates: &[Update]) -> Result<()> {
        // Read each time: the two users may have left the last chat that they shared.
        let pairs: HashSet<(UserId, UserId)> = updates.iter().map(Update::pair).collect();
        let acquainted =
            self.store.users_sharing_a_chat(&pairs.into_iter().collect::<Vec<_>>()).await?;
        let last_seen: HashMap<(UserId, UserId), Option<Timestamp>> =
            acquainted.into_iter().map(|it| ((it.watcher, it.watched), it.last_seen_at)).collect();

        let mut frames: HashMap<(UserId, bool), Bytes> = HashMap::new();
        let mut sent = 0;
        for update in updates {
            let Some(last_seen_at) = last_seen.get(&update.pair()) else {
                self.watchers.remove(update.watcher.id(), &[update.user]);
                continue;
            };
            let encode = || {
                let last_seen_at =
                    if update.online { Some(self.clock.now()) } else { *last_seen_at };
                update.watcher.encode(update.user, update.online, last_seen_at)
            };
            let frame =
                || frames.entry((update.user, update.online)).or_insert_with(encode).clone();
            sent += u64::from(self.watchers.send(update, frame));
        }

        metrics::presence_events(sent);
        Ok(())
    }
}
