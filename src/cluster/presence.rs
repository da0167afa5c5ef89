//! Presence: which users are online on any replica, and how many connections each has.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::BoxFuture;
use crate::model::{Result, UserId};

/// The presence state that the replicas share, and the bound on a user's connections.
///
/// A user is online from the first [`enter`](Self::enter) on a replica until
/// [`withdraw`](Self::withdraw) there. Between [`leave`](Self::leave) and `withdraw` the user lingers,
/// so that a short reconnect changes nothing.
///
/// **Lease**: the state of a replica counts while that replica lives. The connection slots of a killed
/// replica expire after [`slot_ttl`](Self::slot_ttl), its users are offline a few seconds later, and
/// the users of the other replicas stay online. **Order**: the calls of one replica for one user take
/// effect in order, and before the returned future ends if the store can be reached. **Without the
/// store** each replica counts the connections that it has itself, since a bound that refuses every
/// connection is worse than one that admits a few more; `online` fails rather than guess; and a
/// replica writes its complete state again once the store is back. No call but `online` waits longer
/// than [`PRESENCE_WAIT_MAX`](crate::model::limits::PRESENCE_WAIT_MAX), and `online` waits for
/// [`PRESENCE_SYNC_MAX`](crate::model::limits::PRESENCE_SYNC_MAX) at most.
pub trait Presence: Send + Sync {
    /// Takes a slot for one more connection of the user.
    ///
    /// # Errors
    /// The user has `max` connections on all replicas. The bound is exact among the replicas that have
    /// seen each other's lease; a replica is seen at most one renewal after its start.
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>>;

    /// Gives a slot back at once. The user stays online. Returns whether it was the user's last slot
    /// on this replica.
    fn leave(&self, user: UserId) -> bool;

    /// Ends the presence of those of `users` that hold no slot on this replica, and returns them.
    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>>;

    /// Whether each of `users` is online on any replica, in the same order.
    ///
    /// # Errors
    /// `unavailable` if the store can't be reached, or if a user was not found while a replica has
    /// not yet written its state.
    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>>;

    /// The users that have a connection to this replica.
    fn connected(&self) -> Vec<UserId>;

    /// How long the slots of a killed replica count. A user refused within this time after another
    /// replica's death may be admitted after it.
    fn slot_ttl(&self) -> Duration;
}

/// The state of the user before a connection got its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The user was offline on this replica: the watchers must hear of it.
    First,
    /// The user was online on this replica, or lingered.
    Again,
}

/// The user has the maximum number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// The connection slots taken on this replica, by user. This is the truth that the shared store copies.
#[derive(Debug, Default)]
pub struct ConnectionSlots(Mutex<HashMap<UserId, Slots>>);

/// The slots of one user.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    /// Slots of admitted connections.
    taken: usize,
    /// Slots that the other replicas may still refuse.
    claimed: usize,
    /// Whether the user is online here: a connection was admitted, and the user was not withdrawn since.
    online: bool,
}

impl Slots {
    fn is_unused(self) -> bool {
        self.taken == 0 && self.claimed == 0 && !self.online
    }
}

impl ConnectionSlots {
    /// Claims one of at most `max` slots, and returns how many the user holds with it.
    /// [`ConnectionSlots::confirm`] or [`ConnectionSlots::refuse`] must follow.
    ///
    /// # Errors
    /// The user holds `max` slots on this replica.
    pub fn claim(&self, user: UserId, max: usize) -> Result<usize, TooMany> {
        let mut users = self.0.lock();
        let slots = users.get(&user).copied().unwrap_or_default();
        let count = slots.taken + slots.claimed;
        if count >= max {
            return Err(TooMany);
        }

        users.insert(user, Slots { claimed: slots.claimed + 1, ..slots });
        Ok(count + 1)
    }

    /// Turns a claimed slot into a taken one.
    pub fn confirm(&self, user: UserId) -> Entered {
        let mut users = self.0.lock();
        let slots = users.entry(user).or_default();
        slots.claimed = slots.claimed.saturating_sub(1);
        slots.taken += 1;
        if std::mem::replace(&mut slots.online, true) { Entered::Again } else { Entered::First }
    }

    /// Drops a claimed slot.
    pub fn refuse(&self, user: UserId) {
        self.update(user, |slots| slots.claimed = slots.claimed.saturating_sub(1));
    }

    /// Gives a taken slot back. Returns whether it was the last one.
    pub fn release(&self, user: UserId) -> bool {
        self.update(user, |slots| {
            slots.taken = slots.taken.saturating_sub(1);
            slots.taken == 0
        })
        .unwrap_or(false)
    }

    /// Makes those of `users` that hold no taken slot offline, and returns those that were online.
    pub fn withdraw(&self, users: &[UserId]) -> Vec<UserId> {
        let withdrawn =
            |user: &UserId| self.update(*user, |slots| slots.taken == 0 && std::mem::replace(&mut slots.online, false));
        users.iter().copied().filter(|user| withdrawn(user).unwrap_or(false)).collect()
    }

    /// The slots that a user holds or claims; `None` if the user neither does nor is online.
    pub fn count(&self, user: UserId) -> Option<usize> {
        self.0.lock().get(&user).map(|slots| slots.taken + slots.claimed)
    }

    /// Whether a user is online on this replica.
    pub fn is_online(&self, user: UserId) -> bool {
        self.0.lock().get(&user).is_some_and(|slots| slots.online)
    }

    /// The users that are online, or claim a slot.
    pub fn users(&self) -> Vec<UserId> {
        self.0.lock().keys().copied().collect()
    }

    /// The users that hold a taken slot.
    pub fn connected(&self) -> Vec<UserId> {
        self.0.lock().iter().filter(|(_, slots)| slots.taken > 0).map(|(user, _)| *user).collect()
    }

    fn update<T>(&self, user: UserId, change: impl FnOnce(&mut Slots) -> T) -> Option<T> {
        let mut users = self.0.lock();
        let slots = users.get_mut(&user)?;
        let result = change(slots);
        if slots.is_unused() {
            users.remove(&user);
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: UserId = UserId(uuid::Uuid::from_u128(1));

    #[test]
    fn a_user_is_online_from_the_first_slot_until_withdrawn_without_one() {
        let slots = ConnectionSlots::default();
        assert_eq!(slots.claim(ADA, 2), Ok(1));
        assert_eq!(slots.claim(ADA, 2), Ok(2));
        assert_eq!(slots.claim(ADA, 2), Err(TooMany));
        assert_eq!((slots.confirm(ADA), slots.confirm(ADA)), (Entered::First, Entered::Again));
        assert_eq!((slots.release(ADA), slots.withdraw(&[ADA])), (false, vec![]));
        assert_eq!(slots.connected(), [ADA]);

        assert_eq!((slots.release(ADA), slots.is_online(ADA)), (true, true));
        assert_eq!((slots.users(), slots.connected()), (vec![ADA], vec![]));
        assert_eq!((slots.claim(ADA, 2), slots.confirm(ADA)), (Ok(1), Entered::Again));
        assert_eq!((slots.withdraw(&[ADA]), slots.release(ADA)), (vec![], true));
        assert_eq!((slots.withdraw(&[ADA]), slots.withdraw(&[ADA])), (vec![ADA], vec![]));
        assert_eq!(slots.users(), []);
    }

    #[test]
    fn a_refused_slot_leaves_nothing_behind_in_any_order() {
        let slots = ConnectionSlots::default();
        let claim = || assert!(slots.claim(ADA, 9).is_ok());
        claim();
        slots.refuse(ADA);
        assert_eq!(slots.count(ADA), None);

        claim();
        slots.confirm(ADA);
        claim();
        assert!(slots.release(ADA), "a claimed slot is no connection");
        slots.refuse(ADA);
        assert_eq!((slots.is_online(ADA), slots.withdraw(&[ADA]), slots.count(ADA)), (true, vec![ADA], None));

        claim();
        slots.confirm(ADA);
        claim();
        slots.release(ADA);
        assert_eq!((slots.withdraw(&[ADA]), slots.is_online(ADA), slots.count(ADA)), (vec![ADA], false, Some(1)));
        slots.refuse(ADA);
        assert_eq!(slots.count(ADA), None);
    }
}
