//! Work that is asked for more often than it can be done.

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const AT_WORK: u8 = 1;
const ASKED_AGAIN: u8 = 2;

/// Lets one run at a time, and one more after it if somebody asked meanwhile: each asker gets a run that began after it
/// asked.
#[derive(Default)]
pub struct OneAtATime(AtomicU8);

impl OneAtATime {
    /// Asks for a run. Whether the asker has to do it; else whoever is at it does.
    pub fn ask(&self) -> bool {
        let asked = |state| Some(if state == IDLE { AT_WORK } else { ASKED_AGAIN });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, asked) == Ok(IDLE)
    }

    /// Ends a run. Whether to do another.
    pub fn again(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == ASKED_AGAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_during_a_run_gets_one_more() {
        let work = OneAtATime::default();
        assert!(work.ask());
        assert!(!work.ask() && !work.ask());
        assert!(work.again());
        assert!(!work.again());
        assert!(work.ask());
    }
}
