//! Presence: which users are online on any replica, and how many connections each has.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::BoxFuture;
use crate::model::{Result, UserId};

/// The presence state that the replicas share, and the bound on a user's connections.
///
/// A user is online from the first [`enter`](Self::enter) on a replica until
/// [`withdraw`](Self::withdraw) there. Between [`leave`](Self::leave) and `withdraw` the user
/// lingers, so that a short reconnect changes nothing.
///
/// **Lease**: the state of a replica counts while its lease lasts. The connection slots of a killed
/// replica expire after [`slot_ttl`](Self::slot_ttl), its users are offline a few seconds later,
/// and the users of the other replicas stay online. **Order**: the calls of one replica for one
/// user take effect in order, and before the returned future ends if the store can be reached.
/// **Without the store** each replica counts the connections that it has itself, since a bound that
/// refuses every connection is worse than one that admits a few more; `online` fails rather than
/// guess; and a replica writes its complete state again once the store is back. No call but
/// `online` waits longer than [`PRESENCE_WAIT_MAX`](crate::model::limits::PRESENCE_WAIT_MAX), and
/// `online` waits for [`PRESENCE_SYNC_MAX`](crate::model::limits::PRESENCE_SYNC_MAX) at most.
pub trait Presence: Send + Sync {
    /// Takes a slot for one more connection of the user.
    ///
    /// # Errors
    /// The user has `max` connections on all replicas. If connections enter on several replicas at
    /// once, more of them may be refused than the bound requires. The bound holds among the
    /// replicas that have seen each other's lease, which takes one renewal after a start.
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>>;

    /// Gives a slot back at once. The user stays online. Returns whether it was the user's last
    /// slot on this replica.
    fn leave(&self, user: UserId) -> bool;

    /// Ends the presence of those of `users` that hold no slot on this replica, and returns them.
    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>>;

    /// Whether each of `users` is online on any replica, in the same order.
    ///
    /// # Errors
    /// `unavailable` if the store can't be reached, or if a user was not found and a replica has
    /// not written its state yet.
    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>>;

    /// The users that have a connection to this replica.
    fn connected(&self) -> Vec<UserId>;

    /// How long the slots of a killed replica count. A connection refused within this time after
    /// the death of another replica may be admitted after it.
    fn slot_ttl(&self) -> Duration;
}

/// The state of the user before a connection got its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The user was offline on this replica: the watchers must be notified.
    First,
    /// The user was online on this replica, or lingered.
    Again,
}

/// The user has the maximum number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// The connection slots taken on this replica, by user. The shared store holds a copy of them. A
/// user with an entry is online here; a user with an entry and no slot lingers.
#[derive(Debug, Default)]
pub struct ConnectionSlots(Mutex<HashMap<UserId, Slots>>);

/// The slots of one user.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    here: usize,
    /// On the other replicas, as of the last answer of the shared store.
    elsewhere: usize,
}

impl ConnectionSlots {
    /// Takes one of at most `max` slots. Returns how many the user holds with it on this replica.
    ///
    /// # Errors
    /// The user holds `max` slots on this replica.
    pub fn take(&self, user: UserId, max: usize) -> Result<(usize, Entered), TooMany> {
        let mut users = self.0.lock();
        let before = users.get(&user).copied();
        let slots = before.unwrap_or_default();
        if slots.here >= max {
            return Err(TooMany);
        }

        users.insert(user, Slots { here: slots.here + 1, ..slots });
        Ok((slots.here + 1, if before.is_none() { Entered::First } else { Entered::Again }))
    }

    /// Gives a slot back. Returns whether it was the last one.
    pub fn give_back(&self, user: UserId) -> bool {
        let mut users = self.0.lock();
        let Some(slots) = users.get_mut(&user) else { return false };

        slots.here = slots.here.saturating_sub(1);
        slots.here == 0
    }

    /// Removes those of `users` that hold no slot, and returns them.
    pub fn withdraw(&self, users: &[UserId]) -> Vec<UserId> {
        let mut entries = self.0.lock();
        let mut withdraw = |user: &UserId| {
            let lingers = entries.get(user).is_some_and(|slots| slots.here == 0);
            lingers && entries.remove(user).is_some()
        };
        users.iter().copied().filter(|user| withdraw(user)).collect()
    }

    /// The slots that a user holds here; `None` if the user is offline here.
    pub fn here(&self, user: UserId) -> Option<usize> {
        self.0.lock().get(&user).map(|slots| slots.here)
    }

    /// The slots that a user held on the other replicas at the last
    /// [`ConnectionSlots::set_elsewhere`].
    pub fn elsewhere(&self, user: UserId) -> usize {
        self.0.lock().get(&user).map_or(0, |slots| slots.elsewhere)
    }

    /// Records how many slots each user holds on the other replicas. Users that are offline here
    /// are skipped.
    pub fn set_elsewhere(&self, counts: impl Iterator<Item = (UserId, usize)>) {
        let mut users = self.0.lock();
        for (user, elsewhere) in counts {
            if let Some(slots) = users.get_mut(&user) {
                slots.elsewhere = elsewhere;
            }
        }
    }

    /// The users that are online here.
    pub fn users(&self) -> Vec<UserId> {
        self.0.lock().keys().copied().collect()
    }

    /// The users that hold a slot here.
    pub fn connected(&self) -> Vec<UserId> {
        self.0.lock().iter().filter(|(_, slots)| slots.here > 0).map(|(user, _)| *user).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: UserId = UserId(uuid::Uuid::from_u128(1));

    #[test]
    fn a_user_is_online_from_the_first_slot_until_withdrawn_without_one() {
        let slots = ConnectionSlots::default();
        assert_eq!(slots.take(ADA, 2), Ok((1, Entered::First)));
        assert_eq!(slots.take(ADA, 2), Ok((2, Entered::Again)));
        assert_eq!(slots.take(ADA, 2), Err(TooMany));
        assert_eq!((slots.give_back(ADA), slots.withdraw(&[ADA])), (false, vec![]));
        assert_eq!(slots.connected(), [ADA]);

        assert_eq!((slots.give_back(ADA), slots.here(ADA)), (true, Some(0)));
        assert_eq!((slots.users(), slots.connected()), (vec![ADA], vec![]));
        assert_eq!(slots.take(ADA, 2), Ok((1, Entered::Again)));
        assert_eq!((slots.withdraw(&[ADA]), slots.give_back(ADA)), (vec![], true));
        assert_eq!((slots.withdraw(&[ADA]), slots.withdraw(&[ADA])), (vec![ADA], vec![]));
        assert_eq!((slots.users(), slots.give_back(ADA)), (vec![], false));
    }

    #[test]
    fn slots_elsewhere_are_recorded_for_users_that_are_online_here() {
        let slots = ConnectionSlots::default();
        slots.set_elsewhere([(ADA, 3)].into_iter());
        assert_eq!((slots.elsewhere(ADA), slots.here(ADA)), (0, None));
        assert!(slots.take(ADA, 9).is_ok());
        slots.set_elsewhere([(ADA, 3)].into_iter());
        assert_eq!((slots.elsewhere(ADA), slots.take(ADA, 9)), (3, Ok((2, Entered::Again))));
    }
}
