//! What replicas share: each contract, on every implementation of it.

mod arrangements;
mod bus;
mod limiter;
mod presence;
mod session_cache;

use starling::cluster::redis::{ClusterKey, RedisCluster, ReplicaId};
use starling::model::{Clock, PresentEpoch};
use starling::tasks::Tasks;

/// A replica's part of a cluster, without a server around it.
pub struct Replica {
    pub cluster: RedisCluster,
    pub clock: Clock,
    tasks: Tasks,
}

impl Replica {
    /// Joins the community named by `prefix` in the Redis at `url`.
    pub fn join(url: &str, prefix: &str) -> Self {
        Self::with_key(url, prefix, [7; 32])
    }

    pub fn with_key(url: &str, prefix: &str, key: [u8; 32]) -> Self {
        let (clock, tasks) = (Clock::system(), Tasks::default());
        let address = (url.parse().unwrap(), prefix.to_owned());
        let own = ReplicaId(rand::random());
        let cluster = RedisCluster::join(address, own, ClusterKey(key), PresentEpoch::default(), &clock, &tasks);
        Self { cluster, clock, tasks }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    format!("test-{:016x}", rand::random::<u64>())
}
