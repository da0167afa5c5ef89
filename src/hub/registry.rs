//! The authenticated connections, by user and by session.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Connection;
use crate::cluster::Bus;
use crate::model::{SessionId, Topic, UserId};

/// The authenticated connections of this replica. Follows the topic of each connected user on the
/// bus.
pub struct Registry {
    bus: Arc<dyn Bus>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_user: HashMap<UserId, Vec<Arc<Connection>>>,
    by_session: HashMap<SessionId, Vec<Arc<Connection>>>,
}

impl Registry {
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, inner: Mutex::default() }
    }

    pub fn add(&self, connection: &Arc<Connection>) {
        // The bus is called under the lock, here and in `remove`, so that its calls for one user
        // keep their order.
        let mut inner = self.inner.lock();
        let of_user =
            inner.by_user.entry(connection.user_id).or_insert_with(|| Vec::with_capacity(1));
        if of_user.is_empty() {
            self.bus.follow(Topic::User(connection.user_id));
        }
        of_user.push(connection.clone());

        inner
            .by_session
            .entry(connection.session_id)
            .or_insert_with(|| Vec::with_capacity(1))
            .push(connection.clone());
    }

    pub fn remove(&self, connection: &Arc<Connection>) {
        fn remove_from<K: std::hash::Hash + Eq>(
            map: &mut HashMap<K, Vec<Arc<Connection>>>,
            key: &K,
            id: u64,
        ) {
            if let Some(list) = map.get_mut(key) {
                list.retain(|connection| connection.id != id);
                if list.is_empty() {
                    map.remove(key);
                }
            }
        }

        let mut inner = self.inner.lock();
        remove_from(&mut inner.by_user, &connection.user_id, connection.id);
        if !inner.by_user.contains_key(&connection.user_id) {
            self.bus.unfollow(Topic::User(connection.user_id));
        }

        remove_from(&mut inner.by_session, &connection.session_id, connection.id);
    }

    /// The connections of a user that get events or hold them back.
    pub fn streaming(&self, user_id: UserId) -> Vec<Arc<Connection>> {
        let inner = self.inner.lock();
        let of_user = inner.by_user.get(&user_id).into_iter().flatten();
        of_user.filter(|connection| connection.is_streaming()).cloned().collect()
    }

    /// Whether a user has a connection to this replica.
    pub fn has_user(&self, user_id: UserId) -> bool {
        self.inner.lock().by_user.contains_key(&user_id)
    }

    pub fn of_sessions(&self, sessions: &[SessionId]) -> Vec<Arc<Connection>> {
        let inner = self.inner.lock();
        sessions.iter().filter_map(|id| inner.by_session.get(id)).flatten().cloned().collect()
    }

    /// The sessions with a connection to this replica.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.inner.lock().by_session.keys().copied().collect()
    }

    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.inner.lock().by_user.values().flatten().cloned().collect()
    }
}
