//! Presence on this replica: its users come and go, and those who watch somebody are told.
//!
//! An event on the bus says only that somebody's presence may have changed; what is told is what a look at the shared
//! state finds. So a lost or doubled event does no harm, and a look now and then at everybody finds what events missed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::watchers::TooManyWatched;
use super::{CloseReason, Connection, Hub};
use crate::cluster::{Entered, Presence, TooMany};
use crate::metrics;
use crate::model::limits::{HEAL_RETRY, LAST_SEEN_EVERY, LOOKS_AT_ONCE_MAX, PRESENCE_BATCH};
use crate::model::{Error, Event, Result, Timestamp, UserId};
use crate::wire::ServerFrame;

/// What a hub needs to know who is online, and who wants to know.
pub struct Attendance {
    presence: Arc<dyn Presence>,
    linger: Duration,
    leaving: Mutex<Leaving>,
    left: Notify,
    due: Mutex<HashSet<UserId>>,
    woken: Notify,
    looks: Semaphore,
}

/// Users whose last connection ended, until they count as gone.
#[derive(Default)]
struct Leaving {
    /// Until when, and when they were last seen.
    users: HashMap<UserId, (Instant, Timestamp)>,
    /// In order. Whoever came back and left again is in it twice; the later counts.
    queue: VecDeque<(Instant, UserId)>,
}

impl Leaving {
    fn push(&mut self, user: UserId, until: Instant, seen_at: Timestamp) {
        self.users.insert(user, (until, seen_at));
        self.queue.push_back((until, user));
    }

    /// Up to `max` of those whose time is over.
    fn pop(&mut self, now: Instant, max: usize) -> Vec<(UserId, Timestamp)> {
        let mut gone = Vec::new();
        while gone.len() < max
            && let Some((until, user)) = self.queue.pop_front_if(|(until, _)| *until <= now)
        {
            if let Some((_, seen_at)) = self.users.get(&user).copied().filter(|(latest, _)| *latest == until) {
                self.users.remove(&user);
                gone.push((user, seen_at));
            }
        }
        gone
    }
}

impl Attendance {
    /// Of a replica that shares `presence` with the others. Whoever left still counts as online for `linger`.
    pub fn new(presence: Arc<dyn Presence>, linger: Duration) -> Self {
        let (leaving, due) = (Mutex::default(), Mutex::default());
        let looks = Semaphore::new(LOOKS_AT_ONCE_MAX);
        Self { presence, linger, leaving, left: Notify::new(), due, woken: Notify::new(), looks }
    }

    /// Has these users looked at soon.
    pub(super) fn look_soon(&self, users: impl IntoIterator<Item = UserId>) {
        self.due.lock().extend(users);
        self.woken.notify_one();
    }

    fn take_due(&self) -> Vec<UserId> {
        let mut due = self.due.lock();
        let batch: Vec<UserId> = due.iter().take(PRESENCE_BATCH).copied().collect();
        for user in &batch {
            due.remove(user);
        }
        batch
    }
}

impl Hub {
    /// Takes a place for one more connection of a user.
    pub(super) async fn enter(&self, user_id: UserId, per_user_max: usize) -> Result<(), CloseReason> {
        match self.attendance.presence.enter(user_id, per_user_max).await {
            Ok(Entered::First) => self.bus.publish(Event::Presence(user_id)),
            Ok(Entered::Again) => {}
            Err(TooMany) => return Err(CloseReason::TooManyConnections),
        }
        Ok(())
    }

    /// How long a refused connection may be so because of a replica that was killed.
    pub fn dead_count_for(&self) -> Duration {
        self.attendance.presence.dead_count_for()
    }

    /// Gives the place back. If it was the user's last one, they are gone after a while.
    pub(super) fn leave(&self, user_id: UserId) {
        if self.attendance.presence.leave(user_id) {
            let until = Instant::now() + self.attendance.linger;
            self.attendance.leaving.lock().push(user_id, until, self.clock.now());
            self.attendance.left.notify_one();
        }
    }

    /// Announces who is gone, and notes when users were last seen, until the hub is stopped.
    pub(super) async fn keep_attendance(self: Arc<Self>) {
        let mut touch = tokio::time::interval(LAST_SEEN_EVERY);
        touch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.attendance.leaving.lock().queue.front().map(|(until, _)| *until);
            let somebody_is_gone = async {
                match next {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.attendance.left.notified() => {}
                () = somebody_is_gone => {
                    let gone = self.attendance.leaving.lock().pop(Instant::now(), PRESENCE_BATCH);
                    self.withdraw(gone).await;
                }
                _ = touch.tick() => {
                    let now = self.clock.now();
                    let here: Vec<_> = self.registry.users().into_iter().map(|user_id| (user_id, now)).collect();
                    self.note_seen(&here).await;
                }
            }
        }
        // Their clients are on their way to another replica, or come back to this one: that they left is not announced.
        let leaving: Vec<_> = self.attendance.leaving.lock().users.iter().map(|(user, left)| (*user, left.1)).collect();
        self.note_seen(&leaving).await;
    }

    async fn withdraw(&self, users: Vec<(UserId, Timestamp)>) {
        // Noted before it is announced: whoever is told that they are gone is told when they were last seen.
        self.note_seen(&users).await;
        let users: Vec<UserId> = users.into_iter().map(|(user_id, _)| user_id).collect();
        for user_id in self.attendance.presence.withdraw(&users).await {
            self.bus.publish(Event::Presence(user_id));
        }
    }

    async fn note_seen(&self, users: &[(UserId, Timestamp)]) {
        for batch in users.chunks(PRESENCE_BATCH) {
            if let Err(error) = self.store.note_seen(batch).await {
                tracing::warn!(%error, "could not note when users were last seen; the next time they leave, it is again");
                return;
            }
        }
    }

    /// Has a connection watch these users. Returns those that it did not watch already. To be followed by [`Hub::look`],
    /// which tells it of each; of one who shares no chat with its user it is told nothing, and that one is not watched.
    ///
    /// # Errors
    /// If it would watch more than one may.
    pub fn watch(&self, connection: &Arc<Connection>, users: &[UserId]) -> Result<Vec<UserId>, TooManyWatched> {
        self.watchers.add(connection, users)
    }

    /// Has a connection watch these users no more.
    pub fn unwatch(&self, connection: &Connection, users: &[UserId]) {
        self.watchers.remove(connection.id, users);
    }

    /// Has a connection watch nobody.
    pub fn unwatch_all(&self, connection: &Connection) {
        self.watchers.forget(connection.id);
    }

    /// Looks whether these users are online, and tells those who watch them and were told otherwise.
    ///
    /// # Errors
    /// `unavailable`: those are not told yet.
    pub async fn look(&self, users: &[UserId]) -> Result<()> {
        let _turn = self.attendance.looks.acquire().await.map_err(Error::internal)?;
        for batch in users.chunks(PRESENCE_BATCH) {
            self.look_at_batch(batch).await?;
        }
        Ok(())
    }

    async fn look_at_batch(&self, users: &[UserId]) -> Result<()> {
        let look = self.watchers.begin_look();
        let online = self.attendance.presence.online(users).await?;
        let untold = self.watchers.saw(look, users.iter().copied().zip(online));
        for batch in untold.chunks(PRESENCE_BATCH) {
            // Asked each time: they may have left the last chat that they shared.
            let pairs: HashSet<(UserId, UserId)> =
                batch.iter().map(|untold| (untold.connection.user_id, untold.watched)).collect();
            let pairs: Vec<_> = pairs.into_iter().collect();
            let acquainted = self.store.acquaintances(&pairs).await?;
            let acquainted: HashMap<(UserId, UserId), Option<Timestamp>> =
                acquainted.into_iter().map(|it| ((it.watcher, it.watched), it.last_seen_at)).collect();
            let mut frames: HashMap<(UserId, bool), Bytes> = HashMap::new();
            let mut told = 0;
            for untold in batch {
                let Some(last_seen_at) = acquainted.get(&(untold.connection.user_id, untold.watched)) else {
                    self.watchers.remove(untold.connection.id, &[untold.watched]);
                    continue;
                };
                let (user_id, online) = (untold.watched, untold.online);
                let encode = || {
                    let last_seen_at = if online { Some(self.clock.now()) } else { *last_seen_at };
                    ServerFrame::Presence { user_id, online, last_seen_at }.encode()
                };
                let frame = || frames.entry((user_id, online)).or_insert_with(encode).clone();
                told += u64::from(self.watchers.tell(untold, frame));
            }
            metrics::presence_told(told);
        }
        Ok(())
    }

    /// Has a user looked at soon, if anybody here watches them.
    pub(super) fn presence_may_have_changed(&self, user_id: UserId) {
        if self.watchers.is_watched(user_id) {
            self.attendance.look_soon([user_id]);
        }
    }

    /// Has everybody who is watched here looked at soon.
    pub(super) fn look_at_all_watched(&self) {
        self.attendance.look_soon(self.watchers.watched());
    }

    /// Looks at whoever may have changed, until the hub is stopped.
    pub(super) async fn tell_presence(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.attendance.woken.notified() => {}
            }
            loop {
                let due = self.attendance.take_due();
                if due.is_empty() {
                    break;
                }
                if let Err(error) = self.look(&due).await {
                    tracing::debug!(%error, "could not look who is online; trying again");
                    self.attendance.look_soon(due);
                    tokio::time::sleep(HEAL_RETRY).await;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_back_and_leaves_again_lingers_anew() {
        let (user, start) = (UserId::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        let mut leaving = Leaving::default();
        leaving.push(user, at(5), Timestamp::from_ms(0));
        leaving.push(user, at(9), Timestamp::from_ms(4000));
        assert_eq!(leaving.pop(at(8), 10), []);
        assert_eq!(leaving.pop(at(9), 10), [(user, Timestamp::from_ms(4000))]);
        assert!(leaving.users.is_empty() && leaving.queue.is_empty());
    }
}
