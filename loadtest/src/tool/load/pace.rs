//! When messages are meant to be sent.

use std::time::{Duration, Instant};

/// Frames in flight on one connection at most: what the server takes before it stops reading.
const IN_FLIGHT_MAX: usize = 32;

/// One sender's share of the load.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next one when the one before is answered.
    Closed,
    /// As fast as they are taken, until there are so many.
    Burst(u32),
    /// At fixed times, whatever the answers do. A message that had to wait for its sender counts
    /// from the time it was meant for, so that a server that stalls can't hide it.
    Open {
        /// When the first of all senders' messages is due.
        start: Instant,
        /// Between this sender's messages.
        every: Duration,
        /// This sender's first one after `start`.
        offset: Duration,
    },
}

impl Pace {
    /// The share of sender `number` of `senders` in `rate` messages a second; evenly interleaved.
    pub fn open(start: Instant, rate: u32, number: usize, senders: usize) -> Self {
        let between = Duration::from_secs(1) / rate.max(1);
        let times = |count: usize| between * u32::try_from(count).unwrap_or(u32::MAX);
        Self::Open { start, every: times(senders), offset: times(number) }
    }

    /// When this sender's message `number`, counted from 0, is due; `None` for as soon as it may.
    pub fn due(self, number: u32) -> Option<Instant> {
        match self {
            Self::Closed | Self::Burst(_) => None,
            Self::Open { start, every, offset } => Some(start + offset + every * number),
        }
    }

    /// Whether nothing is to be sent after so many.
    pub fn is_done(self, sent: u32) -> bool {
        matches!(self, Self::Burst(count) if sent >= count)
    }

    /// Messages that may wait for an answer at once.
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
