//! Presence: who has a connection, on any replica, and how many.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use super::BoxFuture;
use crate::model::{Result, UserId};

/// Knows who is online anywhere, and holds users to their number of connections.
///
/// A user is online from the first [`enter`](Self::enter) on a replica until [`withdraw`](Self::withdraw) there; between
/// [`leave`](Self::leave) and that lies the caller's patience, so that a flap of a second is nothing.
///
/// **Lease**: what a replica says holds only while that replica lives. Of one that was killed nothing is believed soon
/// after, and what the others said stays. **Order**: what one replica says of a user takes effect in the order of the
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

/// The places taken on this replica, by user: what no other replica can know better. Zero: left, not yet withdrawn.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<UserId, usize>>);

impl Places {
    /// Takes one of at most `max` places. How the user came in, and how many places they hold now.
    ///
    /// # Errors
    /// If they hold `max`.
    pub fn take(&self, user: UserId, max: usize) -> Result<(Entered, usize), TooMany> {
        match self.0.lock().entry(user) {
            Entry::Occupied(held) if *held.get() >= max => Err(TooMany),
            Entry::Occupied(mut held) => {
                *held.get_mut() += 1;
                Ok((Entered::Again, *held.get()))
            }
            Entry::Vacant(_) if max == 0 => Err(TooMany),
            Entry::Vacant(none) => Ok((Entered::First, *none.insert(1))),
        }
    }

    /// Gives a place back. How many the user still holds.
    pub fn give_back(&self, user: UserId) -> usize {
        let mut places = self.0.lock();
        let Some(held) = places.get_mut(&user) else {
            return 0;
        };
        *held = held.saturating_sub(1);
        *held
    }

    /// Forgets those of `users` who hold no place. Which these were.
    pub fn withdraw(&self, users: &[UserId]) -> Vec<UserId> {
        let mut places = self.0.lock();
        let gone = users.iter().filter(|user| places.get(user) == Some(&0)).copied().collect::<Vec<_>>();
        for user in &gone {
            places.remove(user);
        }
        gone
    }

    /// How many places a user holds; `None` if they are not here, and did not just leave.
    pub fn of(&self, user: UserId) -> Option<usize> {
        self.0.lock().get(&user).copied()
    }

    /// Everybody who is here, or just left.
    pub fn users(&self) -> Vec<UserId> {
        self.0.lock().keys().copied().collect()
    }
}
