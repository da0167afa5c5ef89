//! What replicas share: each contract, on every implementation of it.

mod arrangements;
mod bus;
mod limiter;
mod presence;
mod session_cache;

use starling::cluster::redis::{ClusterKey, RedisCluster, ReplicaId};
use starling::model::Clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A replica's part of a cluster, without a server around it.
pub struct Replica {
    pub cluster: RedisCluster,
    pub clock: Clock,
    stop: CancellationToken,
}

impl Replica {
    /// Joins the community named by `prefix` in the Redis at `url`.
    pub fn join(url: &str, prefix: &str) -> Self {
        Self::with_key(url, prefix, [7; 32])
    }

    pub fn with_key(url: &str, prefix: &str, key: [u8; 32]) -> Self {
        let (clock, tasks, stop) = (Clock::system(), TaskTracker::new(), CancellationToken::new());
        let address = (url.parse().unwrap(), prefix.to_owned());
        let own = ReplicaId(rand::random());
        let cluster = RedisCluster::join(address, own, ClusterKey(key), &clock, &tasks, &stop);
        Self { cluster, clock, stop }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    format!("test-{:016x}", rand::random::<u64>())
}
