//! Whether the bus of this replica delivers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::metrics;

/// Pause between two canaries, which only their own replica receives.
pub(super) const CANARY_EVERY: Duration = Duration::from_secs(2);

/// How long a replica may publish canaries without receiving one before it is unready. Longer than
/// it takes to notice and replace a dead connection.
const DEAF_MAX: Duration = Duration::from_secs(15);

/// Whether messages of this replica come back to it through Redis. Every two seconds the replica
/// publishes a canary: a message that only it subscribes to. A subscribed connection can be dead
/// without an error; then no canary arrives.
pub struct BusHealth {
    started: Instant,
    /// Milliseconds since `started` at which Redis last accepted a canary.
    canary_published_at_ms: AtomicU64,
    /// Milliseconds since `started` at which a canary last arrived.
    canary_received_at_ms: AtomicU64,
    connected: AtomicBool,
}

impl BusHealth {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            canary_published_at_ms: AtomicU64::new(0),
            canary_received_at_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        }
    }

    /// Whether this replica publishes canaries but has not received one for 15 s: then other
    /// replicas serve clients better. If Redis accepts no canary, all replicas are in the same
    /// state, and none is deaf.
    pub fn is_deaf(&self) -> bool {
        let published_at_ms = self.canary_published_at_ms.load(Ordering::Relaxed);
        let received_at_ms = self.canary_received_at_ms.load(Ordering::Relaxed);
        published_at_ms.saturating_sub(received_at_ms)
            > u64::try_from(DEAF_MAX.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the subscribed connection is up. A dead connection is noticed after some seconds.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Milliseconds since `started`.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn canary_published(&self) {
        self.canary_published_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn canary_received(&self) {
        self.canary_received_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        metrics::bus_connected(true);
    }

    pub(super) fn disconnected(&self) {
        self.connected.store(false, Ordering::Relaxed);
        metrics::bus_connected(false);
    }

    /// The time without a canary on a connection that was opened at `opened_at_ms`, by
    /// [`Self::now_ms`].
    pub(super) fn silence_since(&self, opened_at_ms: u64) -> Duration {
        let received_at_ms = self.canary_received_at_ms.load(Ordering::Relaxed).max(opened_at_ms);
        Duration::from_millis(self.now_ms().saturating_sub(received_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_publishes_canaries_without_receiving_any_is_unready() {
        let health = BusHealth::new();
        let deaf_at = |published_at_ms, received_at_ms| {
            health.canary_published_at_ms.store(published_at_ms, Ordering::Relaxed);
            health.canary_received_at_ms.store(received_at_ms, Ordering::Relaxed);
            health.is_deaf()
        };
        assert!(!deaf_at(0, 0), "the replica has just started");
        assert!(!deaf_at(60_000, 59_000), "canaries arrive");
        assert!(deaf_at(60_000, 44_000), "canaries were published for 16 s, and none arrived");
        assert!(!deaf_at(60_000, 60_000), "Redis became unreachable at 60 s");
    }
}
