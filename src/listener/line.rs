//! One connection: what it holds, what happens on it, and when it has lasted too long.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics;
use crate::model::limits::{CLOSE_MAX, Patience, REQUEST_MAX, REQUEST_READ_MAX};
use crate::service::{RequestGuard, SharedAddressSlot};

/// The slots of one listener.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// Connections without a complete request head, the one that has waited longest first.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    lines: BTreeMap<u64, Arc<Line>>,
}

/// What the parts of a connection share: the task, the socket and the requests.
pub(super) struct Line {
    slots: Arc<Slots>,
    /// Its key among those that wait.
    number: u64,
    /// The slot, until the socket is closed or the slot goes to a newcomer.
    slot: Mutex<Option<OwnedSemaphorePermit>>,
    /// The slot of the peer's address, until the client has authenticated.
    address_slot: SharedAddressSlot,
    activity: Mutex<Activity>,
    evicted: Notify,
}

struct Activity {
    had_head: bool,
    /// Since when there is no request in progress.
    quiet_since: Instant,
    /// The requests in progress.
    requests: HashMap<u64, Progress>,
    next_request: u64,
}

/// How far a request is.
enum Progress {
    /// Since when it has no answer.
    Unanswered(Instant),
    /// When its answer last moved.
    Answered(Instant),
}

impl Progress {
    /// Until when it must have moved. An answer that is there may wait for the one before it to be
    /// taken, as HTTP/1 has it.
    fn until(&self, patience: &Patience) -> Instant {
        match self {
            Self::Unanswered(since) => *since + REQUEST_READ_MAX + REQUEST_MAX + patience.stall,
            Self::Answered(moved) => *moved + patience.stall,
        }
    }
}

/// What a look at a connection came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Fine(Instant),
    /// Without a request for too long: it may end in peace.
    Idle,
    /// It must end now, for this reason.
    Overdue(&'static str),
}

impl Slots {
    pub(super) fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(connections_max)),
            waiting: Mutex::default(),
        })
    }

    /// A slot for a new connection: a free one, or that of the connection that has waited longest
    /// without a complete request head. `None` if all have had one.
    pub(super) fn take(self: &Arc<Self>, address_slot: SharedAddressSlot) -> Option<Arc<Line>> {
        let slot = self.free.clone().try_acquire_owned().ok().or_else(|| self.evict())?;
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        let activity = Activity {
            had_head: false,
            quiet_since: Instant::now(),
            requests: HashMap::new(),
            next_request: 0,
        };
        let line = Arc::new(Line {
            slots: self.clone(),
            number,
            slot: Mutex::new(Some(slot)),
            address_slot,
            activity: Mutex::new(activity),
            evicted: Notify::new(),
        });
        waiting.lines.insert(number, line.clone());
        Some(line)
    }

    fn evict(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let (_, line) = self.waiting.lock().lines.pop_first()?;
            let slot = line.slot.lock().take();
            line.evicted.notify_one();
            if slot.is_some() {
                metrics::connection_closed("evicted");
                return slot;
            }
        }
    }

    fn forget(&self, number: u64) {
        self.waiting.lock().lines.remove(&number);
    }
}

impl Line {
    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Request {
        let (key, first) = {
            let mut activity = self.activity.lock();
            let key = activity.next_request;
            activity.next_request += 1;
            activity.requests.insert(key, Progress::Unanswered(Instant::now()));
            (key, !std::mem::replace(&mut activity.had_head, true))
        };
        if first {
            self.slots.forget(self.number);
        }
        Request { line: self.clone(), key, guard: RequestGuard::new(self.address_slot.clone()) }
    }

    /// The socket is closed.
    pub(super) fn closed(&self) {
        self.slots.forget(self.number);
        self.address_slot.give_back();
        self.slot.lock().take();
    }

    /// Comes back if the slot went to a newcomer.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Whether the connection may go on. `leaving` is since when it was asked to end in peace.
    pub(super) fn look(
        &self,
        patience: &Patience,
        leaving: Option<Instant>,
        now: Instant,
    ) -> Verdict {
        let activity = self.activity.lock();
        // An answer may begin to wait right after this look.
        let soon = now + patience.stall / 4;
        if let Some(until) = activity.requests.values().map(|request| request.until(patience)).min()
        {
            return if until <= now {
                Verdict::Overdue("answer_stalled")
            } else {
                Verdict::Fine(until.min(soon))
            };
        }
        let (for_long, end): (Duration, _) = match leaving {
            Some(_) => (CLOSE_MAX, Verdict::Overdue("idle")),
            None if activity.had_head => (patience.idle, Verdict::Idle),
            None => (patience.first_head, Verdict::Overdue("no_request")),
        };
        let until = leaving.unwrap_or(activity.quiet_since).max(activity.quiet_since) + for_long;
        if until <= now { end } else { Verdict::Fine(until.min(soon)) }
    }
}

/// A request in progress, from its head until its answer is taken entirely or dropped.
pub(super) struct Request {
    line: Arc<Line>,
    /// Its key among the requests of its connection.
    key: u64,
    /// What the request holds. The work behind the request may hold it longer.
    guard: Arc<RequestGuard>,
}

impl Request {
    /// What the request holds.
    pub(super) fn guard(&self) -> Arc<RequestGuard> {
        self.guard.clone()
    }

    /// The answer began, or a piece of it was taken.
    pub(super) fn moved(&self) {
        self.line.activity.lock().requests.insert(self.key, Progress::Answered(Instant::now()));
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut activity = self.line.activity.lock();
        activity.requests.remove(&self.key);
        activity.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first_head: Duration::from_secs(10),
        idle: Duration::from_mins(1),
        stall: Duration::from_secs(20),
    };

    fn after(line: &Line, seconds: u64) -> Verdict {
        line.look(&PATIENCE, None, Instant::now() + Duration::from_secs(seconds))
    }

    #[test]
    fn a_connection_has_its_time_for_its_first_head_and_then_to_be_idle() {
        let line = Slots::new(1).take(SharedAddressSlot::default()).unwrap();
        assert!(matches!(after(&line, 1), Verdict::Fine(_)));
        assert_eq!(after(&line, 11), Verdict::Overdue("no_request"));
        drop(line.begin());
        assert!(matches!(after(&line, 11), Verdict::Fine(_)));
        assert_eq!(after(&line, 61), Verdict::Idle);
    }

    #[test]
    fn a_request_keeps_its_connection_and_an_answer_that_does_not_move_ends_it() {
        let line = Slots::new(1).take(SharedAddressSlot::default()).unwrap();
        let request = line.begin();
        assert!(
            matches!(after(&line, 39), Verdict::Fine(_)),
            "15 s to read it, 4.5 s to answer it, 20 s to take it"
        );
        assert_eq!(after(&line, 41), Verdict::Overdue("answer_stalled"));
        request.moved();
        assert!(matches!(after(&line, 19), Verdict::Fine(_)));
        assert_eq!(after(&line, 21), Verdict::Overdue("answer_stalled"));
        drop(request);
        assert!(matches!(after(&line, 21), Verdict::Fine(_)));
    }

    #[test]
    fn the_slot_of_the_connection_that_waits_longest_goes_to_a_newcomer_and_no_other_does() {
        let slots = Slots::new(2);
        let take = || slots.take(SharedAddressSlot::default());
        let (first, second) = (take().unwrap(), take().unwrap());
        let _served = first.begin();
        let third = take().unwrap();
        assert!(second.slot.lock().is_none() && first.slot.lock().is_some());
        let _served_too = third.begin();
        assert!(take().is_none(), "both have had a request");
        second.closed();
        assert!(take().is_none(), "the slot is no longer the evicted one's to give back");
        first.closed();
        assert!(take().is_some());
    }
}
