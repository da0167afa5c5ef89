//! The schedule of sends.

use std::time::{Duration, Instant};

/// Most unanswered frames of one connection. The server stops reading at this number.
const IN_FLIGHT_MAX: usize = 32;

/// The schedule of one sender.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Sends the next message when the previous one is answered.
    Closed,
    /// Sends this many messages as fast as the server takes them.
    Burst(u32),
    /// Sends at fixed times, without waiting for answers. Latency counts from the scheduled time,
    /// so that a stall of the server is not hidden (coordinated omission).
    Open {
        /// Time of the first message of all senders.
        start: Instant,
        /// Interval between the messages of this sender.
        every: Duration,
        /// Time from `start` to the first message of this sender.
        offset: Duration,
    },
}

impl Pace {
    /// The schedule of sender `number` of `senders`, which send `rate` messages per second in
    /// total. The senders take turns at even intervals.
    pub fn open(start: Instant, rate: u32, number: usize, senders: usize) -> Self {
        let between = Duration::from_secs(1) / rate.max(1);
        let times = |count: usize| between * u32::try_from(count).unwrap_or(u32::MAX);
        Self::Open { start, every: times(senders), offset: times(number) }
    }

    /// Time at which message `number` of this sender, counted from 0, is due; `None` for
    /// immediately.
    pub fn due(self, number: u32) -> Option<Instant> {
        match self {
            Self::Closed | Self::Burst(_) => None,
            Self::Open { start, every, offset } => Some(start + offset + every * number),
        }
    }

    /// Whether the sender has finished after `sent` messages.
    pub fn is_done(self, sent: u32) -> bool {
        matches!(self, Self::Burst(count) if sent >= count)
    }

    /// Most unanswered messages.
    pub fn in_flight_max(self) -> usize {
        match self {
            Self::Closed => 1,
            Self::Burst(_) | Self::Open { .. } => IN_FLIGHT_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_loop_times_are_even_over_all_senders_and_do_not_drift() {
        let start = Instant::now();
        let paces: Vec<Pace> = (0..4).map(|number| Pace::open(start, 1000, number, 4)).collect();
        let mut times: Vec<Duration> = paces
            .iter()
            .flat_map(|pace| (0..250).map(|number| pace.due(number).unwrap() - start))
            .collect();
        times.sort_unstable();
        for (number, time) in times.iter().enumerate() {
            assert_eq!(*time, Duration::from_millis(u64::try_from(number).unwrap()));
        }
        assert_eq!(paces[3].due(10_000).unwrap() - start, Duration::from_millis(40_003));
    }

    #[test]
    fn a_closed_loop_waits_for_its_answer() {
        assert_eq!((Pace::Closed.due(7), Pace::Closed.in_flight_max()), (None, 1));
        assert!(!Pace::Closed.is_done(u32::MAX));
    }

    #[test]
    fn a_burst_ends_with_its_last_message() {
        assert!(!Pace::Burst(3).is_done(2) && Pace::Burst(3).is_done(3));
    }
}
