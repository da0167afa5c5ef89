//! Work that is requested more often than it can be done.

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const REQUESTED_AGAIN: u8 = 2;

/// Lets one run at a time, and one more after it if it was requested meanwhile: each request gets a
/// run that began after the request.
#[derive(Default)]
pub struct OneAtATime(AtomicU8);

impl OneAtATime {
    /// Requests a run. Returns whether the caller has to do it; if not, the caller of the present
    /// run will.
    pub fn ask(&self) -> bool {
        let requested = |state| Some(if state == IDLE { RUNNING } else { REQUESTED_AGAIN });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, requested) == Ok(IDLE)
    }

    /// Ends a run. Returns whether the caller has to do another.
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
