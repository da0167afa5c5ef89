//! Who watches whom on this replica, and what each was told last. Pure bookkeeping; [`super::presence`] puts it to work.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::connection::Connection;
use crate::cluster::Bus;
use crate::metrics;
use crate::model::limits::WATCHED_MAX;
use crate::model::{Topic, UserId};

/// The watching connections of this replica. Asks the bus for the changes of whom they watch, and of nobody else: the
/// cost of presence grows with those who watch, not with the community.
pub(super) struct Watchers {
    bus: Arc<dyn Bus>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_user: HashMap<UserId, Watched>,
    by_connection: HashMap<u64, HashSet<UserId>>,
    /// Looks begun so far: a later one knows better.
    looks: u64,
    pairs: usize,
}

#[derive(Default)]
struct Watched {
    /// What the latest look saw, and which look that was.
    seen: Option<(u64, bool)>,
    watchers: HashMap<u64, Watcher>,
}

struct Watcher {
    connection: Arc<Connection>,
    told: Option<bool>,
}

/// The connection would watch more users than one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWatched;

/// Somebody who was told something else than what is, or nothing yet.
pub(super) struct Untold {
    pub connection: Arc<Connection>,
    pub watched: UserId,
    pub online: bool,
}

impl Watchers {
    /// Without watchers.
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, inner: Mutex::default() }
    }

    /// Has a connection watch these users, and be told of each whatever it was told before. Returns those that it did not
    /// watch already.
    pub fn add(&self, connection: &Arc<Connection>, users: &[UserId]) -> Result<Vec<UserId>, TooManyWatched> {
        let mut inner = self.inner.lock();
        let Inner { by_user, by_connection, pairs, .. } = &mut *inner;
        let wanted: HashSet<UserId> = users.iter().copied().collect();
        let watched = by_connection.get(&connection.id);
        let new: Vec<UserId> =
            wanted.iter().filter(|user| watched.is_none_or(|it| !it.contains(user))).copied().collect();
        if watched.map_or(0, HashSet::len) + new.len() > WATCHED_MAX {
            return Err(TooManyWatched);
        }
        for user in wanted {
            let watched = by_user.entry(user).or_insert_with(|| {
                self.bus.follow(Topic::Presence(user));
                Watched::default()
            });
            watched.watchers.insert(connection.id, Watcher { connection: connection.clone(), told: None });
        }
        if !new.is_empty() {
            by_connection.entry(connection.id).or_default().extend(&new);
        }
        *pairs += new.len();
        Ok(new)
    }

    /// Has a connection watch these users no more.
    pub fn remove(&self, connection: u64, users: &[UserId]) {
        let mut inner = self.inner.lock();
        for user in users {
            inner.remove(connection, *user, &*self.bus);
        }
    }

    /// Has a connection watch nobody.
    pub fn forget(&self, connection: u64) {
        let mut inner = self.inner.lock();
        let users: Vec<UserId> = inner.by_connection.get(&connection).into_iter().flatten().copied().collect();
        for user in users {
            inner.remove(connection, user, &*self.bus);
        }
    }

    /// Whether anybody here watches this user.
    pub fn is_watched(&self, user: UserId) -> bool {
        self.inner.lock().by_user.contains_key(&user)
    }

    /// Everybody who is watched here.
    pub fn watched(&self) -> Vec<UserId> {
        let inner = self.inner.lock();
        metrics::presence_watches(inner.pairs);
        inner.by_user.keys().copied().collect()
    }

    /// Begins a look: what it sees counts unless a look that began later saw something before it.
    pub fn begin_look(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.looks += 1;
        inner.looks
    }

    /// Notes what a look saw. Returns who was told something else, or nothing yet.
    pub fn saw(&self, look: u64, sights: impl Iterator<Item = (UserId, bool)>) -> Vec<Untold> {
        let mut inner = self.inner.lock();
        let mut untold = Vec::new();
        for (user, online) in sights {
            let Some(watched) = inner.by_user.get_mut(&user) else {
                continue;
            };
            if watched.seen.is_none_or(|(earlier, _)| earlier < look) {
                watched.seen = Some((look, online));
            }
            let Some((_, online)) = watched.seen else {
                continue;
            };
            let others = watched.watchers.values().filter(|watcher| watcher.told != Some(online));
            untold.extend(others.map(|it| Untold { connection: it.connection.clone(), watched: user, online }));
        }
        untold
    }

    /// Tells a watcher by `frame`, unless it stopped watching, was told by another look, or another state is known by now:
    /// whoever saw that tells it. Whether it was told.
    pub fn tell(&self, untold: &Untold, frame: impl FnOnce() -> Bytes) -> bool {
        let mut inner = self.inner.lock();
        let Some(Watched { seen, watchers }) = inner.by_user.get_mut(&untold.watched) else {
            return false;
        };
        let current = seen.is_some_and(|(_, online)| online == untold.online);
        match watchers.get_mut(&untold.connection.id) {
            Some(watcher) if current && watcher.told != Some(untold.online) => {
                watcher.told = Some(untold.online);
                // Under the lock, so that two changes reach the outbox in their order.
                untold.connection.push_always(&frame());
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
        {
            self.pairs -= 1;
            if users.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
        if let Some(watched) = self.by_user.get_mut(&user) {
            watched.watchers.remove(&connection);
            if watched.watchers.is_empty() {
                self.by_user.remove(&user);
                bus.unfollow(Topic::Presence(user));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::connection::TakeOutcome;
    use super::*;
    use crate::cluster::memory::MemoryBus;
    use crate::model::SessionId;

    fn user(number: u128) -> UserId {
        UserId(Uuid::from_u128(number))
    }

    fn bench() -> (Watchers, Arc<Connection>) {
        let bus = Arc::new(MemoryBus::new().0);
        (Watchers::new(bus), Connection::new(1, user(1), SessionId::default(), 0))
    }

    fn told(connection: &Connection) -> usize {
        let mut frames = Vec::new();
        assert!(matches!(connection.take(&mut frames, usize::MAX), TakeOutcome::Open));
        frames.len()
    }

    /// A look that sees this, and tells everybody whom it concerns.
    fn look(watchers: &Watchers, look: u64, online: bool) {
        for untold in watchers.saw(look, [(user(2), online)].into_iter()) {
            watchers.tell(&untold, || Bytes::from_static(b"{}"));
        }
    }

    #[test]
    fn only_differences_are_told() {
        let (watchers, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        for (online, news) in [(true, 1), (true, 0), (false, 1), (false, 0), (true, 1)] {
            look(&watchers, watchers.begin_look(), online);
            assert_eq!(told(&connection), news);
        }
    }

    #[test]
    fn whoever_asks_again_is_told_again() {
        let (watchers, connection) = bench();
        for _ in 0..2 {
            watchers.add(&connection, &[user(2)]).unwrap();
            look(&watchers, watchers.begin_look(), true);
            assert_eq!(told(&connection), 1);
        }
        assert_eq!(watchers.inner.lock().pairs, 1);
    }

    #[test]
    fn a_look_that_ends_late_does_not_bring_back_what_was() {
        let (watchers, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        let (early, late) = (watchers.begin_look(), watchers.begin_look());
        look(&watchers, late, false);
        look(&watchers, early, true);
        assert_eq!(told(&connection), 1);
    }

    #[test]
    fn what_changed_while_the_watcher_was_checked_is_left_to_who_saw_it() {
        let (watchers, connection) = bench();
        watchers.add(&connection, &[user(2)]).unwrap();
        let slow = watchers.saw(watchers.begin_look(), [(user(2), true)].into_iter());
        let quick = watchers.saw(watchers.begin_look(), [(user(2), false)].into_iter());
        assert!(!watchers.tell(&slow[0], || panic!("it is not so any more")));
        assert!(watchers.tell(&quick[0], Bytes::new));
        assert!(!watchers.tell(&quick[0], || panic!("it was told")));
    }

    #[test]
    fn the_bound_counts_each_user_once_and_a_refused_frame_adds_nobody() {
        let (watchers, connection) = bench();
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
    fn whoever_goes_leaves_nothing_behind() {
        let (watchers, connection) = bench();
        watchers.add(&connection, &[user(2), user(3)]).unwrap();
        let untold = watchers.saw(watchers.begin_look(), [(user(2), true)].into_iter());
        watchers.forget(connection.id);
        assert!(!watchers.tell(&untold[0], || panic!("nobody watches")));
        let inner = watchers.inner.lock();
        assert!(inner.by_user.is_empty() && inner.by_connection.is_empty() && inner.pairs == 0);
    }
}
