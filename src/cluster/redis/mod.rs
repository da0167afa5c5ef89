//! The state that replicas share over Redis. Redis may be wiped or unreachable at any time: it
//! holds only data that may be lost, and every part states what it does without Redis.

mod address;
mod bus;
mod channel;
mod dirty;
mod health;
mod lease;
mod limiter;
mod link;
mod presence;
mod publisher;
mod replica_id;
mod seal;
mod session_cache;
mod subscriber;

pub use address::RedisAddress;
pub use bus::RedisBus;
pub use channel::{CHANNELS, Channel};
pub use health::BusHealth;
pub use lease::Leases;
pub use limiter::RedisRateLimiter;
use link::Link;
pub use link::Redis;
pub use presence::RedisPresence;
pub use replica_id::ReplicaId;
pub use seal::ClusterKey;
pub use session_cache::RedisSessionCache;

use std::sync::Arc;

use crate::cluster::BusInbox;
use crate::model::faults::{self, Mutant};
use crate::model::{Clock, PresentEpoch};
use crate::tasks::Tasks;

/// This replica's part of a cluster over Redis.
pub struct RedisCluster {
    /// Publishes events.
    pub bus: Arc<RedisBus>,
    /// The events of all replicas, for the hub.
    pub inbox: BusInbox,
    /// Caches resolved tokens.
    pub session_cache: Arc<RedisSessionCache>,
    /// Counts rate limits.
    pub limiter: Arc<RedisRateLimiter>,
    /// The users that are online on any replica.
    pub presence: Arc<RedisPresence>,
    /// The leases of all replicas.
    pub leases: Arc<Leases>,
    /// Whether the bus delivers.
    pub health: Arc<BusHealth>,
}

impl RedisCluster {
    /// Joins the cluster at this address, under `prefix`. If Redis is unreachable, this replica
    /// works without it and joins when Redis answers.
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
                if replica_lost && !faults::on(Mutant::NoResyncOnDeath) {
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

/// Checks that Redis at this address accepts writes and scripts. Returns its version.
///
/// # Errors
/// The message of the error of Redis or of the connection.
pub async fn examine(address: &RedisAddress) -> Result<String, String> {
    let message_of = |error: bb8_redis::redis::RedisError| error.to_string();
    let mut link =
        Link::open(address, None::<tokio::sync::broadcast::Sender<_>>).await.map_err(message_of)?;

    // A read would succeed on a read-only server, too.
    let mut write = bb8_redis::redis::cmd("SET");
    write
        .arg("starling:examined")
        .arg("")
        .arg("PX")
        .arg(1000)
        .exec_async(&mut link)
        .await
        .map_err(message_of)?;

    let mut hello = bb8_redis::redis::cmd("EVAL");
    hello.arg("return redis.REDIS_VERSION or 'before 7'").arg(1).arg("starling:examined");
    hello.query_async(&mut link).await.map_err(message_of)
}
