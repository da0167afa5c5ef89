//! Whether a clock can be trusted.

use std::time::Instant;

use super::Timestamp;
use super::limits::{CLOCK_JUMP_MAX, CLOCK_TRUST_AFTER};

/// Detects jumps of a clock by comparison with a monotonic clock.
///
/// After a jump, the time before or the time after it may be wrong. A clock that was wrong for a
/// moment soon shows the right time again; a clock that was corrected stays where it is. So after
/// each jump the clock is in doubt for [`CLOCK_TRUST_AFTER`].
#[derive(Debug, Default)]
pub struct JumpWatch {
    last: Option<(Timestamp, Instant)>,
    doubted_until: Option<Instant>,
}

impl JumpWatch {
    /// Compares the clock with the monotonic time since the previous call. Returns whether no call
    /// during the last [`CLOCK_TRUST_AFTER`] found a jump of more than [`CLOCK_JUMP_MAX`].
    pub fn is_steady(&mut self, shown: Timestamp, measured: Instant) -> bool {
        if let Some((shown_before, measured_before)) = self.last.replace((shown, measured)) {
            let passed = measured.saturating_duration_since(measured_before);
            let apart = shown.as_ms().abs_diff(shown_before.plus(passed).as_ms());
            if u128::from(apart) > CLOCK_JUMP_MAX.as_millis() {
                self.doubted_until = Some(measured + CLOCK_TRUST_AFTER);
            }
        }

        self.doubted_until.is_none_or(|until| measured >= until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_jumps_is_not_steady_for_the_next_hour() {
        let (start, minute) = (Instant::now(), Duration::from_mins(1));
        let noon = Timestamp::from_ms(1_795_305_600_000);
        let mut watch = JumpWatch::default();
        assert!(watch.is_steady(noon, start));
        assert!(
            watch.is_steady(noon.plus(2 * minute), start + minute),
            "a clock that is slightly fast"
        );

        let ahead = noon.plus(Duration::from_hours(48));
        assert!(!watch.is_steady(ahead, start + 2 * minute), "a jump forward");
        assert!(!watch.is_steady(ahead.plus(minute), start + 3 * minute), "a minute after it");

        let back = noon.plus(4 * minute);
        assert!(!watch.is_steady(back, start + 4 * minute), "a jump back");
        assert!(!watch.is_steady(
            back.plus(CLOCK_TRUST_AFTER / 2),
            start + 4 * minute + CLOCK_TRUST_AFTER / 2
        ));
        assert!(
            watch.is_steady(back.plus(CLOCK_TRUST_AFTER), start + 4 * minute + CLOCK_TRUST_AFTER),
            "steady again"
        );
    }
}
