//! Leases: which replicas are alive. Each renews its own in time; who does not is dead to the others.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::Script;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::ReplicaId;
use super::link::{Down, Redis};
use crate::metrics;
use crate::model::faults::{self, Mutant};

/// How long a replica counts as alive after its last renewal. With [`RENEW_EVERY`] it bounds how late its death is
/// noticed: what it committed and could not announce is looked for then.
const LEASE: Duration = Duration::from_secs(3);
/// How long what a replica said of its users is believed after its last renewal: a stumble is no death.
const BELIEVED: Duration = Duration::from_secs(10);
/// Pause between two renewals.
const RENEW_EVERY: Duration = Duration::from_millis(750);

/// Renews one's own lease by the clock of Redis, and tells who else has one. Answers whether one's own was still there,
/// and each replica with the milliseconds since its lease ended (negative: it goes on).
const RENEW: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
    local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
    for index = 2, #all, 2 do all[index] = string.format('%d', now - all[index]) end
    return {held and 1 or 0, all}";

/// What a renewal brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// A replica that was alive is not any more: it may have died with something untold.
    pub somebody_died: bool,
    /// One's own lease was gone: Redis lost what it knew, or this replica slept.
    pub own_was_lost: bool,
}

#[derive(Default)]
struct Known {
    alive: Vec<ReplicaId>,
    believed: Vec<ReplicaId>,
}

/// The replicas of the cluster, as far as this one knows.
pub struct Leases {
    redis: Arc<Redis>,
    own: ReplicaId,
    script: Script,
    known: Mutex<Known>,
}

impl Leases {
    /// This replica's view. It holds no lease before the first renewal.
    pub fn new(redis: Arc<Redis>, own: ReplicaId) -> Self {
        let known = Mutex::new(Known { alive: vec![own], believed: vec![own] });
        Self { redis, own, script: Script::new(RENEW), known }
    }

    /// This replica.
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// The replicas whose word on their users counts, this one among them.
    pub fn believed(&self) -> Vec<ReplicaId> {
        self.known.lock().believed.clone()
    }

    /// Renews until `stop`, then gives the lease back. Tells each renewal to `then`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, then: impl Fn(Renewal) + Send) {
        let mut tick = tokio::time::interval(RENEW_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            if let Ok(renewal) = self.renew().await {
                then(renewal);
            }
        }
        let mut withdraw = bb8_redis::redis::cmd("ZREM");
        withdraw.arg(self.redis.key("replicas", "")).arg(self.own.to_string());
        let _ = self.redis.command::<i64>("lease", &withdraw).await;
    }

    /// Renews the lease once.
    ///
    /// # Errors
    /// [`Down`]: nothing is known anew.
    pub async fn renew(&self) -> Result<Renewal, Down> {
        let keep = i64::try_from(BELIEVED.as_millis()).unwrap_or(i64::MAX);
        let lease = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        let mut call = self.script.prepare_invoke();
        call.key(self.redis.key("replicas", "")).arg(self.own.to_string()).arg(lease).arg(keep);
        let (held, all): (i64, Vec<(String, i64)>) = self.redis.script("lease", &call).await?;
        let of = |late_ms: i64| {
            let known = all.iter().filter(move |(_, ended_ms)| *ended_ms < late_ms);
            known.filter_map(|(id, _)| id.parse().ok()).collect::<Vec<ReplicaId>>()
        };
        let (alive, believed) = (of(0), of(keep - lease));
        metrics::replicas(alive.len());
        let mut known = self.known.lock();
        let own_was_lost = held == 0;
        let somebody_died = known.alive.iter().any(|id| !alive.contains(id));
        // After Redis forgot everything, those who were there have a moment to come back.
        if faults::on(Mutant::GhostsNeverExpire) {
            known.believed.extend(believed);
        } else if !own_was_lost {
            known.believed = believed;
        }
        known.alive = alive;
        Ok(Renewal { somebody_died, own_was_lost })
    }
}
