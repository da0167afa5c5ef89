//! The state of one connection: its slots, its requests in progress, and its deadlines.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics;
use crate::model::limits::{CLOSE_MAX, ConnectionTimeouts, REQUEST_MAX, REQUEST_READ_MAX};
use crate::service::{RequestGuard, SharedAddressSlot};

/// The connection slots of one listener.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

/// The connections without a complete request head, the oldest first.
#[derive(Default)]
struct Waiting {
    next: u64,
    lines: BTreeMap<u64, Arc<Line>>,
}

/// The state of a connection, shared by its task, its socket and its requests.
pub(super) struct Line {
    slots: Arc<Slots>,
    /// The connection's key in [`Waiting`].
    number: u64,
    /// The connection slot, until the socket is closed or the connection is evicted.
    slot: Mutex<Option<OwnedSemaphorePermit>>,
    /// The slot of the peer's address, until the client has authenticated.
    address_slot: SharedAddressSlot,
    activity: Mutex<Activity>,
    evicted: Notify,
}

struct Activity {
    had_head: bool,
    /// Since when the connection has had no request in progress.
    quiet_since: Instant,
    /// The requests in progress.
    requests: HashMap<u64, Progress>,
    next_request: u64,
}

/// The progress of a request.
enum Progress {
    /// The request head was complete at this time; there is no answer yet.
    Unanswered(Instant),
    /// The client read a piece of the answer, or the answer began, at this time.
    Answered(Instant),
}

impl Progress {
    /// The deadline of the next progress. In HTTP/1 an answer waits until the client has read the
    /// answer before it, so `stall` also applies to a request without an answer.
    fn until(&self, patience: &ConnectionTimeouts) -> Instant {
        match self {
            Self::Unanswered(since) => *since + REQUEST_READ_MAX + REQUEST_MAX + patience.stall,
            Self::Answered(moved) => *moved + patience.stall,
        }
    }
}

/// The result of a check of a connection's deadlines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The connection meets its deadlines. Check again at this time.
    Fine(Instant),
    /// The connection had no request for too long: shut it down gracefully.
    Idle,
    /// The connection missed a deadline: close it now, for this reason.
    Overdue(&'static str),
}

impl Slots {
    pub(super) fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(connections_max)),
            waiting: Mutex::default(),
        })
    }

    /// Takes a slot for a new connection. If no slot is free, evicts the oldest connection without
    /// a complete request head. `None` if there is no such connection.
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

    fn stop_waiting(&self, number: u64) {
        self.waiting.lock().lines.remove(&number);
    }
}

impl Line {
    /// Begins a request whose head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Request {
        let (key, first) = {
            let mut activity = self.activity.lock();
            let key = activity.next_request;
            activity.next_request += 1;
            activity.requests.insert(key, Progress::Unanswered(Instant::now()));
            (key, !std::mem::replace(&mut activity.had_head, true))
        };

        if first {
            self.slots.stop_waiting(self.number);
        }
        Request { line: self.clone(), key, guard: RequestGuard::new(self.address_slot.clone()) }
    }

    /// Releases the connection's slots. Called when the socket is closed.
    pub(super) fn closed(&self) {
        self.slots.stop_waiting(self.number);
        self.address_slot.give_back();
        self.slot.lock().take();
    }

    /// Returns once the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Checks the connection's deadlines. `leaving` is the time at which its graceful shutdown
    /// began.
    pub(super) fn look(
        &self,
        patience: &ConnectionTimeouts,
        leaving: Option<Instant>,
        now: Instant,
    ) -> Verdict {
        let activity = self.activity.lock();
        // An answer may begin to stall right after this check.
        let soon = now + patience.stall / 4;
        if let Some(until) = activity.requests.values().map(|request| request.until(patience)).min()
        {
            return if until <= now {
                Verdict::Overdue("answer_stalled")
            } else {
                Verdict::Fine(until.min(soon))
            };
        }

        let (quiet_max, end): (Duration, _) = match leaving {
            Some(_) => (CLOSE_MAX, Verdict::Overdue("idle")),
            None if activity.had_head => (patience.idle, Verdict::Idle),
            None => (patience.first_head, Verdict::Overdue("no_request")),
        };
        let until = leaving.unwrap_or(activity.quiet_since).max(activity.quiet_since) + quiet_max;
        if until <= now { end } else { Verdict::Fine(until.min(soon)) }
    }
}

/// A request in progress, from its complete head until its answer is read or dropped.
pub(super) struct Request {
    line: Arc<Line>,
    /// The request's key in [`Activity::requests`].
    key: u64,
    /// The address slot and the user's permit. The task behind the request may keep it for longer.
    guard: Arc<RequestGuard>,
}

impl Request {
    pub(super) fn guard(&self) -> Arc<RequestGuard> {
        self.guard.clone()
    }

    /// Records that the answer began, or that the client read a piece of it.
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

    const PATIENCE: ConnectionTimeouts = ConnectionTimeouts {
        first_head: Duration::from_secs(10),
        idle: Duration::from_mins(1),
        stall: Duration::from_secs(20),
    };

    fn after(line: &Line, seconds: u64) -> Verdict {
        line.look(&PATIENCE, None, Instant::now() + Duration::from_secs(seconds))
    }

    #[test]
    fn a_connection_ends_without_a_first_head_in_time_and_when_it_is_idle_for_too_long() {
        let line = Slots::new(1).take(SharedAddressSlot::default()).unwrap();
        assert!(matches!(after(&line, 1), Verdict::Fine(_)));
        assert_eq!(after(&line, 11), Verdict::Overdue("no_request"));
        drop(line.begin());
        assert!(matches!(after(&line, 11), Verdict::Fine(_)));
        assert_eq!(after(&line, 61), Verdict::Idle);
    }

    #[test]
    fn a_request_keeps_its_connection_open_until_its_answer_stalls() {
        let line = Slots::new(1).take(SharedAddressSlot::default()).unwrap();
        let request = line.begin();
        assert!(
            matches!(after(&line, 39), Verdict::Fine(_)),
            "15 s to read the request, 4.5 s to answer it, 20 s to send the answer"
        );
        assert_eq!(after(&line, 41), Verdict::Overdue("answer_stalled"));

        request.moved();
        assert!(matches!(after(&line, 19), Verdict::Fine(_)));
        assert_eq!(after(&line, 21), Verdict::Overdue("answer_stalled"));
        drop(request);
        assert!(matches!(after(&line, 21), Verdict::Fine(_)));
    }

    #[test]
    fn a_new_connection_evicts_the_oldest_one_without_a_request_head_and_no_other() {
        let slots = Slots::new(2);
        let take = || slots.take(SharedAddressSlot::default());
        let (first, second) = (take().unwrap(), take().unwrap());
        let _served = first.begin();
        let third = take().unwrap();
        assert!(second.slot.lock().is_none() && first.slot.lock().is_some());

        let _served_too = third.begin();
        assert!(take().is_none(), "both connections have had a request");
        second.closed();
        assert!(take().is_none(), "an evicted connection does not release its former slot");
        first.closed();
        assert!(take().is_some());
    }
}
