//! What replicas share over Redis. Redis may be wiped or unreachable at any time: it holds only
//! data that may be lost, and every part states what it does without Redis.

mod address;
mod bus;
mod channel;
mod dirty;
mod lease;
mod limiter;
mod link;
mod presence;
mod publisher;
mod seal;
mod session_cache;
mod subscriber;

pub use address::RedisAddress;
pub use bus::RedisBus;
pub use channel::{CHANNELS, Channel};
pub use lease::Leases;
pub use limiter::RedisRateLimiter;
use link::Link;
pub use link::Redis;
pub use presence::RedisPresence;
pub use seal::ClusterKey;
pub use session_cache::RedisSessionCache;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::BusInbox;
use crate::metrics;
use crate::model::faults::{self, Mutant};
use crate::model::{Clock, PresentEpoch};
use crate::tasks::Tasks;

/// This replica's part of a cluster over Redis.
pub struct RedisCluster {
    /// Publishes events.
    pub bus: Arc<RedisBus>,
    /// The events of this and the other replicas.
    pub inbox: BusInbox,
    /// Resolved tokens.
    pub session_cache: Arc<RedisSessionCache>,
    /// Rate limits.
    pub limiter: Arc<RedisRateLimiter>,
    /// The users who are online.
    pub presence: Arc<RedisPresence>,
    /// The replicas that are alive.
    pub leases: Arc<Leases>,
    /// The state of the bus.
    pub health: Arc<BusHealth>,
}

impl RedisCluster {
    /// Joins the cluster at this address, under `prefix`. If Redis is unreachable, this replica
    /// works alone until Redis is back.
    pub fn join(
        (address, prefix): (RedisAddress, String),
        own: ReplicaId,
        key: ClusterKey,
        epoch: PresentEpoch,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Self {
        let redis = Arc::new(Redis::new(address.clone(), prefix));
        let (bus, inbox, health) =
            RedisBus::start(own, key.clone(), redis.clone(), address, epoch, clock, tasks);
        let bus = Arc::new(bus);

        let leases = Arc::new(Leases::new(redis.clone(), own));
        let presence = Arc::new(RedisPresence::new(redis.clone(), leases.clone()));
        tasks.spawn_vital("presence", presence.clone().run(tasks.stop_token()));
        let renewed = {
            let (bus, presence) = (bus.clone(), presence.clone());
            move |replica_lost| {
                presence.renewed();
                if replica_lost && !faults::on(Mutant::NoLookOnDeath) {
                    bus.resync_all();
                }
            }
        };
        tasks.spawn_vital("leases", leases.clone().run(tasks.stop_token(), renewed));

        let session_cache = Arc::new(RedisSessionCache::new(
            redis.clone(),
            key.clone(),
            clock.clone(),
            tasks.clone(),
        ));
        let limiter = Arc::new(RedisRateLimiter::new(redis, key, clock.clone()));

        Self { bus, inbox, session_cache, limiter, presence, leases, health }
    }
}

/// Whether Redis at this address can be used. Returns its version.
///
/// # Errors
/// The error of Redis or of the connection, in words.
pub async fn examine(address: &RedisAddress) -> Result<String, String> {
    let in_words = |error: bb8_redis::redis::RedisError| error.to_string();
    let mut link =
        Link::open(address, None::<tokio::sync::broadcast::Sender<_>>).await.map_err(in_words)?;
    // A write, since a read-only server is of no use.
    let mut write = bb8_redis::redis::cmd("SET");
    write
        .arg("starling:examined")
        .arg("")
        .arg("PX")
        .arg(1000)
        .exec_async(&mut link)
        .await
        .map_err(in_words)?;
    let mut hello = bb8_redis::redis::cmd("EVAL");
    hello.arg("return redis.REDIS_VERSION or 'before 7'").arg(1).arg("starling:examined");
    hello.query_async(&mut link).await.map_err(in_words)
}

/// Identifies a replica: random, made at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ReplicaId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// How long a replica may publish canaries without receiving one before it is unready. Longer than
/// it takes to notice and replace a dead connection.
const DEAF_MAX: Duration = Duration::from_secs(15);

/// The state of the way from this replica through Redis back to itself. Every two seconds the
/// replica publishes a canary: a message that only it subscribes to. A subscribed connection can be
/// dead without an error; then no canary arrives.
pub struct BusHealth {
    started: Instant,
    /// Milliseconds since `started` at which Redis last took a canary.
    canary_published_at_ms: AtomicU64,
    /// Milliseconds since `started` at which a canary last arrived.
    canary_received_at_ms: AtomicU64,
    connected: AtomicBool,
}

impl BusHealth {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            canary_published_at_ms: AtomicU64::new(0),
            canary_received_at_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        }
    }

    /// Whether this replica publishes canaries but has not received one for 15 s: other replicas
    /// serve clients better. If Redis takes no canary either, all replicas are in the same state,
    /// and none is deaf.
    pub fn is_deaf(&self) -> bool {
        let published_at_ms = self.canary_published_at_ms.load(Ordering::Relaxed);
        let received_at_ms = self.canary_received_at_ms.load(Ordering::Relaxed);
        published_at_ms.saturating_sub(received_at_ms)
            > u64::try_from(DEAF_MAX.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the subscribed connection is up, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Milliseconds since this value was made.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn canary_published(&self) {
        self.canary_published_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn canary_received(&self) {
        self.canary_received_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        metrics::bus_connected(true);
    }

    fn disconnected(&self) {
        self.connected.store(false, Ordering::Relaxed);
        metrics::bus_connected(false);
    }

    /// How long no canary has arrived on a connection that was opened at `opened_at_ms`, by
    /// [`Self::now_ms`].
    fn silence_since(&self, opened_at_ms: u64) -> Duration {
        let received_at_ms = self.canary_received_at_ms.load(Ordering::Relaxed).max(opened_at_ms);
        Duration::from_millis(self.now_ms().saturating_sub(received_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_deaf_if_it_publishes_for_long_without_receiving_and_not_if_it_cannot_publish() {
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
