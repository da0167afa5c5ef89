//! The contracts of the cluster traits, on every implementation.

mod arrangements;
mod bus;
mod limiter;
mod presence;
mod session_cache;
mod versions;

use starling::cluster::redis::{ClusterKey, RedisCluster, ReplicaId};
use starling::model::{Clock, PresentEpoch};
use starling::tasks::Tasks;

use crate::support::redis_url;

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
        let cluster = RedisCluster::join(
            address,
            own,
            ClusterKey(key),
            PresentEpoch::default(),
            &clock,
            &tasks,
        );
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

/// Bytes sealed as a message on the bus.
pub fn sealed(key: [u8; 32], body: &[u8]) -> Vec<u8> {
    ClusterKey(key).seal("published", body)
}

/// A message that a replica of the next version may publish about these topics: the header, whose
/// format is fixed, with one more field, and a payload that the present version can't read.
pub fn next_version_message(key: [u8; 32], topics: &[String]) -> Vec<u8> {
    let sealed_at_ms = Clock::system().now().as_ms();
    let header = serde_json::json!({
        "version": 2, "kind": "event", "from": 7, "epoch": null, "sealed_at_ms": sealed_at_ms,
        "topics": topics, "of_the_next_version": true,
    });
    sealed(key, format!("{header}\n\u{1}of the next version").as_bytes())
}

/// Publishes bytes on a channel that a replica is subscribed to.
pub async fn publish_raw(channel: &str, body: &[u8]) {
    assert!(publish_to_any(channel, body).await >= 1, "a replica is subscribed to {channel}");
}

/// Publishes bytes on a channel. Returns the number of its subscribers.
pub async fn publish_to_any(channel: &str, body: &[u8]) -> i64 {
    let mut redis =
        redis::Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    redis::cmd("PUBLISH").arg(channel).arg(body).query_async(&mut redis).await.unwrap()
}
