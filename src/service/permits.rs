//! Permits that bound the concurrent work of each user on a replica.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::UserId;

/// Permits for the users of this replica, the same number for each user. A user that neither holds
/// nor awaits a permit costs no memory. A user's requests get their permits in the order of their
/// calls.
#[derive(Debug)]
pub struct UserPermits {
    per_user: usize,
    users: Mutex<HashMap<UserId, Share>>,
}

/// The permits of one user.
#[derive(Debug)]
struct Share {
    permits: Arc<Semaphore>,
    /// Number of permits that are held or awaited. At zero, the share is removed.
    interests: usize,
}

/// One permit of a user, given back when dropped.
#[derive(Debug)]
pub struct UserPermit {
    permit: Option<OwnedSemaphorePermit>,
    interest: Interest,
}

/// Keeps a user's share in the map while a permit is held or awaited. Its drop also runs if the
/// wait is cancelled.
#[derive(Debug)]
struct Interest {
    permits: Arc<UserPermits>,
    user_id: UserId,
}

impl UserPermits {
    /// Gives each user `per_user` permits, and at least one.
    pub fn new(per_user: usize) -> Arc<Self> {
        Arc::new(Self { per_user: per_user.max(1), users: Mutex::default() })
    }

    /// A permit of this user, if one is free.
    pub fn try_acquire(self: &Arc<Self>, user_id: UserId) -> Option<UserPermit> {
        let (share, interest) = self.share(user_id);
        let permit = share.try_acquire_owned().ok()?;
        Some(UserPermit { permit: Some(permit), interest })
    }

    /// A permit of this user; `None` if none is free within `wait`.
    pub async fn acquire(self: &Arc<Self>, user_id: UserId, wait: Duration) -> Option<UserPermit> {
        if let Some(permit) = self.try_acquire(user_id) {
            return Some(permit);
        }

        let (share, interest) = self.share(user_id);
        let permit = tokio::time::timeout(wait, share.acquire_owned()).await.ok()?.ok()?;
        Some(UserPermit { permit: Some(permit), interest })
    }

    /// Number of users with a permit that is held or awaited.
    #[cfg(test)]
    pub fn users(&self) -> usize {
        self.users.lock().len()
    }

    fn share(self: &Arc<Self>, user_id: UserId) -> (Arc<Semaphore>, Interest) {
        let mut users = self.users.lock();
        let fresh = || Share { permits: Arc::new(Semaphore::new(self.per_user)), interests: 0 };
        let share = users.entry(user_id).or_insert_with(fresh);
        share.interests += 1;
        (share.permits.clone(), Interest { permits: self.clone(), user_id })
    }
}

impl UserPermit {
    pub fn user_id(&self) -> UserId {
        self.interest.user_id
    }
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        // The permit first, then the interest: a removed share must have all of its permits.
        self.permit = None;
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut users = self.permits.users.lock();
        if let Some(share) = users.get_mut(&self.user_id) {
            share.interests -= 1;
            if share.interests == 0 {
                users.remove(&self.user_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(30);

    fn user(number: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn each_user_has_the_configured_number_of_permits() {
        let permits = UserPermits::new(2);
        let held = [permits.try_acquire(user(1)), permits.try_acquire(user(1))];
        assert!(held.iter().all(Option::is_some));
        assert!(permits.try_acquire(user(1)).is_none());
        assert!(permits.acquire(user(1), SOON).await.is_none());
        assert!(permits.try_acquire(user(2)).is_some());
    }

    #[tokio::test]
    async fn a_permit_given_back_goes_to_the_waiting_request() {
        let permits = UserPermits::new(1);
        let held = permits.try_acquire(user(1)).unwrap();
        assert_eq!(held.user_id(), user(1));
        let waiting = permits.acquire(user(1), LATE);
        let (next, ()) = tokio::join!(waiting, async move { drop(held) });
        assert!(next.is_some());
    }

    #[tokio::test]
    async fn a_user_without_permits_costs_no_memory_even_after_a_wait_timed_out() {
        let permits = UserPermits::new(1);
        let held = permits.try_acquire(user(1));
        assert!(permits.acquire(user(1), SOON).await.is_none());
        assert_eq!(permits.users(), 1);
        drop(held);
        assert_eq!(permits.users(), 0);
        assert!(permits.try_acquire(user(1)).is_some());
    }
}
