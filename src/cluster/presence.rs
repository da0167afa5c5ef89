//! Presence: who has a connection, on any replica, and how many.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::BoxFuture;
use crate::model::{Result, UserId};

/// Knows who is online anywhere, and holds users to their number of connections.
///
/// A user is online from the first [`enter`](Self::enter) on a replica until [`withdraw`](Self::withdraw) there; between
/// [`leave`](Self::leave) and that lies the caller's patience, so that a flap of a second is nothing.
///
/// **Lease**: what a replica says holds only while that replica lives. Of one that was killed no place counts soon after
/// ([`dead_count_for`](Self::dead_count_for)), nothing is believed a little later, and what the others said stays. **Order**: what one replica says of a user takes effect in the order of the
/// calls, and before the returned future ends, unless blind. **Blind** (what is shared can't be asked): places are counted
/// on this replica alone, since a bound that refuses everybody is worse than one that lets a few more in; `online` fails
/// rather than guesses; and once it sees again, the replica says anew who is here. Nothing waits longer than
/// [`crate::model::limits::PRESENCE_WAIT_MAX`].
pub trait Presence: Send + Sync {
    /// Takes a place for one more connection of the user, who may have `max`, exactly, over all replicas.
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>>;
    /// Gives a place back, at once. The user stays online. Whether it was their last place here.
    fn leave(&self, user: UserId) -> bool;
    /// Says that those of `users` who hold no place here are no longer here. Returns which these were.
    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>>;
    /// Who of `users` is online, on any replica, in the same order.
    ///
    /// # Errors
    /// `unavailable`.
    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>>;
    /// How long places count that a replica held which was killed: whoever is one too many may not be so after it.
    fn dead_count_for(&self) -> Duration;
}

/// How somebody came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// They were not here: whoever watches must hear of it.
    First,
    /// They were, or left so shortly ago that nobody noticed.
    Again,
}

/// The user has all the connections that one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// The places taken on this replica, by user: what no other replica can know better.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<UserId, Held>>);

/// What one user has here.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Places of connections.
    taken: usize,
    /// Places that others may still object to.
    asked: usize,
    /// Whether the user counts as online here: they came in and were not withdrawn.
    here: bool,
}

impl Places {
    /// Asks for one of at most `max` places. Returns how many the user holds with it. To be followed by
    /// [`Places::confirm`] or [`Places::refuse`].
    ///
    /// # Errors
    /// If they hold `max` here alone.
    pub fn ask(&self, user: UserId, max: usize) -> Result<usize, TooMany> {
        let mut places = self.0.lock();
        let held = places.get(&user).copied().unwrap_or_default();
        let count = held.taken + held.asked;
        if count >= max {
            return Err(TooMany);
        }
        places.insert(user, Held { asked: held.asked + 1, ..held });
        Ok(count + 1)
    }

    /// A place that was asked for is taken.
    pub fn confirm(&self, user: UserId) -> Entered {
        let mut places = self.0.lock();
        let held = places.entry(user).or_default();
        held.asked = held.asked.saturating_sub(1);
        held.taken += 1;
        if std::mem::replace(&mut held.here, true) { Entered::Again } else { Entered::First }
    }

    /// A place that was asked for is not to be had.
    pub fn refuse(&self, user: UserId) {
        let mut places = self.0.lock();
        if let Some(held) = places.get_mut(&user) {
            held.asked = held.asked.saturating_sub(1);
            if held.taken == 0 && held.asked == 0 && !held.here {
                places.remove(&user);
            }
        }
    }

    /// Gives a place back. Whether it was the last one taken.
    pub fn give_back(&self, user: UserId) -> bool {
        let mut places = self.0.lock();
        let Some(held) = places.get_mut(&user) else {
            return false;
        };
        held.taken = held.taken.saturating_sub(1);
        held.taken == 0
    }

    /// Has those of `users` who hold no place count as online no more. Which these were.
    pub fn withdraw(&self, users: &[UserId]) -> Vec<UserId> {
        let mut places = self.0.lock();
        let mut gone = Vec::new();
        for user in users {
            if let Some(held) = places.get_mut(user)
                && held.taken == 0
                && std::mem::replace(&mut held.here, false)
            {
                gone.push(*user);
                if held.asked == 0 {
                    places.remove(user);
                }
            }
        }
        gone
    }

    /// How many places a user holds or asked for; `None` if they are not here, and did not just leave.
    pub fn of(&self, user: UserId) -> Option<usize> {
        self.0.lock().get(&user).map(|held| held.taken + held.asked)
    }

    /// Whether a user counts as online here.
    pub fn is_here(&self, user: UserId) -> bool {
        self.0.lock().get(&user).is_some_and(|held| held.here)
    }

    /// Everybody who is here, or just left, or is about to come in.
    pub fn users(&self) -> Vec<UserId> {
        self.0.lock().keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: UserId = UserId(uuid::Uuid::from_u128(1));

    #[test]
    fn a_user_is_here_from_the_first_place_until_withdrawn_without_one() {
        let places = Places::default();
        assert_eq!(places.ask(ADA, 2), Ok(1));
        assert_eq!(places.ask(ADA, 2), Ok(2));
        assert_eq!(places.ask(ADA, 2), Err(TooMany));
        assert_eq!((places.confirm(ADA), places.confirm(ADA)), (Entered::First, Entered::Again));
        assert_eq!((places.give_back(ADA), places.withdraw(&[ADA])), (false, vec![]));
        assert_eq!((places.give_back(ADA), places.is_here(ADA)), (true, true));
        assert_eq!((places.ask(ADA, 2), places.confirm(ADA)), (Ok(1), Entered::Again));
        assert_eq!((places.withdraw(&[ADA]), places.give_back(ADA)), (vec![], true));
        assert_eq!((places.withdraw(&[ADA]), places.withdraw(&[ADA])), (vec![ADA], vec![]));
        assert_eq!(places.users(), []);
    }

    #[test]
    fn a_refused_place_leaves_nothing_behind_whatever_happens_meanwhile() {
        let places = Places::default();
        let ask = || assert!(places.ask(ADA, 9).is_ok());
        ask();
        places.refuse(ADA);
        assert_eq!(places.of(ADA), None);
        ask();
        places.confirm(ADA);
        ask();
        assert!(places.give_back(ADA), "the one that was only asked for does not count");
        places.refuse(ADA);
        assert_eq!((places.is_here(ADA), places.withdraw(&[ADA]), places.of(ADA)), (true, vec![ADA], None));
        ask();
        places.confirm(ADA);
        ask();
        places.give_back(ADA);
        assert_eq!((places.withdraw(&[ADA]), places.is_here(ADA), places.of(ADA)), (vec![ADA], false, Some(1)));
        places.refuse(ADA);
        assert_eq!(places.of(ADA), None);
    }
}
