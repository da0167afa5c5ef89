//! Merges requests for the same work while it runs.

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const REQUESTED_AGAIN: u8 = 2;

/// Admits one run at a time, and one more after it if it was requested meanwhile. So each request
/// is followed by a run that began after the request.
#[derive(Default)]
pub struct OneAtATime(AtomicU8);

impl OneAtATime {
    /// Requests a run. Returns whether the caller must do it. If not, the caller that is running
    /// now does it afterwards.
    pub fn ask(&self) -> bool {
        let requested = |state| Some(if state == IDLE { RUNNING } else { REQUESTED_AGAIN });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, requested) == Ok(IDLE)
    }

    /// Ends a run. Returns whether the caller must do another one.
    pub fn again(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == REQUESTED_AGAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_during_a_run_get_one_more_run() {
        let work = OneAtATime::default();
        assert!(work.ask());
        assert!(!work.ask() && !work.ask());
        assert!(work.again());
        assert!(!work.again());
        assert!(work.ask());
    }
}
