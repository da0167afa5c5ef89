//! Records which connection watches which user on this replica, and what state it was last sent.
//! [`super::resync`] uses these records.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Watcher;
use crate::cluster::Bus;
use crate::metrics;
use crate::model::limits::WATCHED_MAX;
use crate::model::{Topic, UserId};

/// The watches of this replica. Follows the presence topic of each watched user on the bus.
pub(super) struct Watchers {
    bus: Arc<dyn Bus>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_user: HashMap<UserId, Watched>,
    by_connection: HashMap<u64, HashSet<UserId>>,
    /// Resyncs begun so far. A resync with a higher number has the newer result.
    resyncs: u64,
}

#[derive(Default)]
struct Watched {
    /// The number of the latest resync with a result, and whether the user was online.
    latest: Option<(u64, bool)>,
    /// By the id of the connection.
    watches: HashMap<u64, Watch>,
}

/// One connection's watch of one user.
struct Watch {
    watcher: Arc<dyn Watcher>,
    /// The state that the connection was last sent; `None` if it must be sent the next one.
    sent: Option<bool>,
}

/// The connection would watch more than [`WATCHED_MAX`] users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWatched;

/// A frame to send: the watcher was last sent another state of the user, or none.
pub(super) struct Update {
    pub watcher: Arc<dyn Watcher>,
    pub user: UserId,
    pub online: bool,
}

impl Update {
    /// The watching user and the watched user.
    pub fn pair(&self) -> (UserId, UserId) {
        (self.watcher.user_id(), self.user)
    }
}

impl Watchers {
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, inner: Mutex::default() }
    }

    /// Makes a connection watch these users. The next resync sends it the state of each, even if it
    /// was sent that state before. Returns the users that it did not watch yet.
    pub fn add(
        &self,
        watcher: &Arc<dyn Watcher>,
        users: &[UserId],
    ) -> Result<Vec<UserId>, TooManyWatched> {
        // The bus is called under the lock, here and in `remove`, so that its calls for one user
        // keep their order.
        let mut inner = self.inner.lock();
        let Inner { by_user, by_connection, .. } = &mut *inner;
        let users: HashSet<UserId> = users.iter().copied().collect();

        let before = by_connection.get(&watcher.id());
        let new: Vec<UserId> = users
            .iter()
            .filter(|user| before.is_none_or(|it| !it.contains(user)))
            .copied()
            .collect();
        if before.map_or(0, HashSet::len) + new.len() > WATCHED_MAX {
            return Err(TooManyWatched);
        }

        for user in users {
            let entry = by_user.entry(user).or_insert_with(|| {
                self.bus.follow(Topic::Presence(user));
                Watched::default()
            });
            entry.watches.insert(watcher.id(), Watch { watcher: watcher.clone(), sent: None });
        }
        if !new.is_empty() {
            by_connection.entry(watcher.id()).or_default().extend(&new);
        }
        Ok(new)
    }

    /// Ends a connection's watch of these users.
    pub fn remove(&self, connection: u64, users: &[UserId]) {
        let mut inner = self.inner.lock();
        for user in users {
            inner.remove(connection, *user, &*self.bus);
        }
    }

    /// Ends all watches of a connection.
    pub fn remove_all(&self, connection: u64) {
        let mut inner = self.inner.lock();
        let users: Vec<UserId> =
            inner.by_connection.get(&connection).into_iter().flatten().copied().collect();
        for user in users {
            inner.remove(connection, user, &*self.bus);
        }
    }

    pub fn is_watched(&self, user: UserId) -> bool {
        self.inner.lock().by_user.contains_key(&user)
    }

    /// The watched users. Also updates the metric of watches.
    pub fn watched(&self) -> Vec<UserId> {
        let inner = self.inner.lock();
        metrics::presence_watches(inner.by_connection.values().map(HashSet::len).sum());
        inner.by_user.keys().copied().collect()
    }

    /// Begins a resync and returns its number. To be called before the shared state is read: the
    /// result is dropped if a later resync has recorded one.
    pub fn begin_resync(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.resyncs += 1;
        inner.resyncs
    }

    /// Records the result of a resync. Returns an update for each watcher that is not up to date.
    pub fn record(&self, resync: u64, states: impl Iterator<Item = (UserId, bool)>) -> Vec<Update> {
        let mut inner = self.inner.lock();
        let mut updates = Vec::new();
        for (user, online) in states {
            let Some(watched) = inner.by_user.get_mut(&user) else { continue };
            let (_, online) = *match &mut watched.latest {
                Some(latest) if latest.0 > resync => latest,
                latest => latest.insert((resync, online)),
            };

            let outdated = watched.watches.values().filter(|watch| watch.sent != Some(online));
            updates.extend(outdated.map(|watch| Update {
                watcher: watch.watcher.clone(),
                user,
                online,
            }));
        }
        updates
    }

    /// Sends the frame of an update and returns true, unless the watch has ended, another resync
    /// has sent the same state, or the state has changed: then the resync that recorded the new
    /// state sends it.
    pub fn send(&self, update: &Update, frame: impl FnOnce() -> Bytes) -> bool {
        let mut inner = self.inner.lock();
        let Some(Watched { latest, watches }) = inner.by_user.get_mut(&update.user) else {
            return false;
        };

        let is_current = latest.is_some_and(|(_, online)| online == update.online);
        match watches.get_mut(&update.watcher.id()) {
            Some(watch) if is_current && watch.sent != Some(update.online) => {
                watch.sent = Some(update.online);
                // Under the lock, so that two states reach the outbox in the order of `sent`.
                watch.watcher.send(&frame());
                true
            }
            _ => false,
        }
    }
}

impl Inner {
    fn remove(&mut self, connection: u64, user: UserId, bus: &dyn Bus) {
        if let Some(users) = self.by_connection.get_mut(&connection)
            && users.remove(&user)
            && users.is_empty()
        {
            self.by_connection.remove(&connection);
        }

        if let Some(watched) = self.by_user.get_mut(&user) {
            watched.watches.remove(&connection);
            if watched.watches.is_empty() {
                self.by_user.remove(&user);
                bus.unfollow(Topic::Presence(user));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::cluster::memory::MemoryBus;
    use crate::model::Timestamp;

    /// A connection that counts its frames.
    #[derive(Default)]
    struct Counter(Mutex<usize>);

    impl Counter {
        fn take(&self) -> usize {
            std::mem::take(&mut self.0.lock())
        }
    }

    impl Watcher for Counter {
        fn id(&self) -> u64 {
            1
        }

        fn user_id(&self) -> UserId {
            user(1)
        }

        fn encode(&self, _: UserId, _: bool, _: Option<Timestamp>) -> Bytes {
            Bytes::new()
        }

        fn send(&self, _: &Bytes) {
            *self.0.lock() += 1;
        }
    }

    fn user(number: u128) -> UserId {
        UserId(Uuid::from_u128(number))
    }

    fn bench() -> (Watchers, Arc<Counter>, Arc<dyn Watcher>) {
        let counter = Arc::<Counter>::default();
        (Watchers::new(Arc::new(MemoryBus::new().0)), counter.clone(), counter)
    }

    /// Records the result of a resync and sends every update.
    fn resync(watchers: &Watchers, number: u64, online: bool) {
        for update in watchers.record(number, [(user(2), online)].into_iter()) {
            watchers.send(&update, Bytes::new);
        }
    }

    #[test]
    fn only_differences_are_sent() {
        let (watchers, frames, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        for (online, sent) in [(true, 1), (true, 0), (false, 1), (false, 0), (true, 1)] {
            resync(&watchers, watchers.begin_resync(), online);
            assert_eq!(frames.take(), sent);
        }
    }

    #[test]
    fn a_connection_that_watches_again_is_sent_the_state_again() {
        let (watchers, frames, connection) = bench();
        for _ in 0..2 {
            watchers.add(&connection, &[user(2)]).unwrap();
            resync(&watchers, watchers.begin_resync(), true);
            assert_eq!(frames.take(), 1);
        }
        assert_eq!(watchers.inner.lock().by_connection[&1].len(), 1);
    }

    #[test]
    fn a_resync_that_ends_late_does_not_bring_back_an_old_state() {
        let (watchers, frames, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        let (early, late) = (watchers.begin_resync(), watchers.begin_resync());
        resync(&watchers, late, false);
        resync(&watchers, early, true);
        assert_eq!(frames.take(), 1);
    }

    #[test]
    fn a_state_that_changed_while_the_watcher_was_checked_is_sent_by_the_later_resync_alone() {
        let (watchers, _, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        let slow = watchers.record(watchers.begin_resync(), [(user(2), true)].into_iter());
        let quick = watchers.record(watchers.begin_resync(), [(user(2), false)].into_iter());
        assert!(!watchers.send(&slow[0], || panic!("the state is another by now")));
        assert!(watchers.send(&quick[0], Bytes::new));
        assert!(!watchers.send(&quick[0], || panic!("it was sent")));
    }

    #[test]
    fn the_bound_counts_each_user_once_and_a_refused_frame_adds_no_watch() {
        let (watchers, _, connection) = bench();
        let most: Vec<UserId> = (0..WATCHED_MAX as u128).map(user).collect();
        watchers.add(&connection, &most[1..]).unwrap();
        watchers.add(&connection, &[user(1), user(1), user(2)]).unwrap();
        let over = [user(0), user(1_000_000)];
        assert_eq!(watchers.add(&connection, &over).unwrap_err(), TooManyWatched);

        watchers.add(&connection, &over[..1]).unwrap();
        watchers.remove(1, &over[..1]);
        watchers.add(&connection, &over[1..]).unwrap();
    }

    #[test]
    fn a_connection_that_ends_leaves_no_watches() {
        let (watchers, _, connection) = bench();
        watchers.add(&connection, &[user(2), user(3)]).unwrap();
        let updates = watchers.record(watchers.begin_resync(), [(user(2), true)].into_iter());
        watchers.remove_all(connection.id());
        assert!(!watchers.send(&updates[0], || panic!("the watch ended")));
        let inner = watchers.inner.lock();
        assert!(inner.by_user.is_empty() && inner.by_connection.is_empty());
    }
}
