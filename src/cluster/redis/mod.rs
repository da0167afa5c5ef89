//! What replicas share over Redis. Redis may be wiped or away at any time: nothing here is the truth of anything but
//! who is online, and every part says what it does without Redis.

mod address;
mod bus;
mod channel;
mod envelope;
mod lease;
mod limiter;
mod link;
mod presence;
mod session_cache;

pub use address::RedisAddress;
pub use bus::RedisBus;
pub use channel::{CHANNELS, Channel};
pub use envelope::ClusterKey;
pub use lease::Leases;
pub use limiter::RedisRateLimiter;
use link::Link;
pub use link::Redis;
pub use presence::RedisPresence;
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
    /// To and from the other replicas.
    pub bus: Arc<RedisBus>,
    /// What comes in.
    pub inbox: BusInbox,
    /// Resolved tokens.
    pub session_cache: Arc<RedisSessionCache>,
    /// Rate limits.
    pub limiter: Arc<RedisRateLimiter>,
    /// Which users are online.
    pub presence: Arc<RedisPresence>,
    /// Which replicas are alive.
    pub leases: Arc<Leases>,
    /// Whether the bus works.
    pub health: Arc<BusHealth>,
}

impl RedisCluster {
    /// Joins the cluster at this address, under `prefix`. Redis may be away: then this replica goes on alone until it is
    /// back.
    pub fn join(
        (address, prefix): (RedisAddress, String),
        own: ReplicaId,
        key: ClusterKey,
        epoch: PresentEpoch,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Self {
        let redis = Arc::new(Redis::new(address.clone(), prefix));
        let (bus, inbox, health) = RedisBus::start(own, key.clone(), redis.clone(), address, epoch, clock, tasks);
        let bus = Arc::new(bus);
        let leases = Arc::new(Leases::new(redis.clone(), own));
        let presence = Arc::new(RedisPresence::new(redis.clone(), leases.clone()));
        tasks.spawn_vital("presence", presence.clone().run(tasks.stop_token()));
        let renewed = {
            let (bus, presence) = (bus.clone(), presence.clone());
            move |replica_lost| {
                presence.renewed();
                if replica_lost && !faults::on(Mutant::NoLookOnDeath) {
                    bus.look_at_everything();
                }
            }
        };
        tasks.spawn_vital("leases", leases.clone().run(tasks.stop_token(), renewed));
        let session_cache = Arc::new(RedisSessionCache::new(redis.clone(), key.clone(), clock.clone(), tasks.clone()));
        let limiter = Arc::new(RedisRateLimiter::new(redis, key, clock.clone()));
        Self { bus, inbox, session_cache, limiter, presence, leases, health }
    }
}

/// Whether Redis at this address can be used. Returns its version.
///
/// # Errors
/// What Redis or the way to it says.
pub async fn examine(address: &RedisAddress) -> Result<String, String> {
    let in_words = |error: bb8_redis::redis::RedisError| error.to_string();
    let mut link = Link::open(address, None::<tokio::sync::broadcast::Sender<_>>).await.map_err(in_words)?;
    // A write, since a server that only reads is of no use.
    let mut write = bb8_redis::redis::cmd("SET");
    write.arg("starling:examined").arg("").arg("PX").arg(1000).exec_async(&mut link).await.map_err(in_words)?;
    let mut hello = bb8_redis::redis::cmd("EVAL");
    hello.arg("return redis.REDIS_VERSION or 'before 7'").arg(1).arg("starling:examined");
    hello.query_async(&mut link).await.map_err(in_words)
}

/// Tells replicas apart: made at random at every start.
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

/// How long a replica that Redis takes commands from may be deaf before it asks for no more clients.
const DEAF_MAX: Duration = Duration::from_secs(15);

/// What is known of the way from this replica through Redis to itself.
pub struct BusHealth {
    started: Instant,
    /// Milliseconds since `started` at which it last spoke to itself with success.
    sang_at_ms: AtomicU64,
    /// Milliseconds since `started` at which it last heard itself.
    heard_at_ms: AtomicU64,
    connected: AtomicBool,
}

impl BusHealth {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            sang_at_ms: AtomicU64::new(0),
            heard_at_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        }
    }

    /// Whether this replica speaks but has not heard itself for long: clients are better off elsewhere. That Redis is
    /// away altogether is no reason: then all replicas are alike.
    pub fn is_deaf(&self) -> bool {
        let (sang, heard) = (self.sang_at_ms.load(Ordering::Relaxed), self.heard_at_ms.load(Ordering::Relaxed));
        sang.saturating_sub(heard) > u64::try_from(DEAF_MAX.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the bus works as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn sang(&self) {
        self.sang_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn heard(&self) {
        self.heard_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        metrics::bus_connected(true);
    }

    fn cut(&self) {
        self.connected.store(false, Ordering::Relaxed);
        metrics::bus_connected(false);
    }

    /// The present, to count a connection's silence from.
    fn mark(&self) -> u64 {
        self.now_ms()
    }

    /// How long nothing was heard since `mark`.
    fn silence(&self, mark: u64) -> Duration {
        let heard = self.heard_at_ms.load(Ordering::Relaxed).max(mark);
        Duration::from_millis(self.now_ms().saturating_sub(heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_deaf_if_it_speaks_for_long_without_hearing_itself_and_not_if_it_can_not_speak() {
        let health = BusHealth::new();
        let at = |sang_at_ms, heard_at_ms| {
            health.sang_at_ms.store(sang_at_ms, Ordering::Relaxed);
            health.heard_at_ms.store(heard_at_ms, Ordering::Relaxed);
            health.is_deaf()
        };
        assert!(!at(0, 0), "it has just begun");
        assert!(!at(60_000, 59_000), "it hears itself");
        assert!(at(60_000, 44_000), "it spoke, and heard nothing for 16 s");
        assert!(!at(60_000, 60_000), "Redis went away at 60 s, and time passes");
    }
}
