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
pub(super) const LEASE: Duration = Duration::from_secs(3);
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

/// Whose lease goes on or ended no longer than some milliseconds ago, by the clock of Redis.
const LISTED: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - ARGV[1]), '+inf')";

/// Ends one's own lease at once, by the clock of Redis.
const END: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    return redis.call('ZADD', KEYS[1], 'XX', now, ARGV[1])";

/// What a renewal brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// A replica that was alive is not any more: it may have died with something untold.
    pub somebody_died: bool,
    /// A replica whose word on its users counted does not count any more: they are offline, unless another has them.
    pub somebody_is_gone: bool,
    /// One's own lease was gone: Redis lost what it knew, or this replica slept.
    pub own_was_lost: bool,
}

#[derive(Default)]
struct Known {
    /// Whether this replica held a lease before.
    renewed: bool,
    alive: Vec<ReplicaId>,
    believed: Vec<ReplicaId>,
}

/// The replicas of the cluster, as far as this one knows.
pub struct Leases {
    redis: Arc<Redis>,
    own: ReplicaId,
    script: Script,
    listed: Script,
    known: Mutex<Known>,
}

impl Leases {
    /// This replica's view. It holds no lease before the first renewal.
    pub fn new(redis: Arc<Redis>, own: ReplicaId) -> Self {
        let known = Mutex::new(Known { renewed: false, alive: vec![own], believed: vec![own] });
        Self { redis, own, script: Script::new(RENEW), listed: Script::new(LISTED), known }
    }

    /// This replica.
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// The replicas whose word on their users counts, this one among them.
    pub fn believed(&self) -> Vec<ReplicaId> {
        self.known.lock().believed.clone()
    }

    /// The same, as Redis has it now: one that started since the last renewal is among them, and this one only if its
    /// lease was not lost.
    ///
    /// # Errors
    /// [`Down`].
    pub async fn believed_now(&self) -> Result<Vec<ReplicaId>, Down> {
        if faults::on(Mutant::GhostsNeverExpire) {
            return Ok(self.believed());
        }
        self.listed_now(BELIEVED.saturating_sub(LEASE)).await
    }

    /// The replicas that have a lease, as Redis has it now.
    ///
    /// # Errors
    /// [`Down`].
    pub async fn alive_now(&self) -> Result<Vec<ReplicaId>, Down> {
        self.listed_now(Duration::ZERO).await
    }

    /// The replicas whose lease goes on or ended no longer than this ago.
    async fn listed_now(&self, late: Duration) -> Result<Vec<ReplicaId>, Down> {
        let mut call = self.listed.prepare_invoke();
        call.key(self.redis.key("replicas", "")).arg(i64::try_from(late.as_millis()).unwrap_or(i64::MAX));
        let ids: Vec<String> = self.redis.script("lease", &call).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
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
        // Not as if it had never been: whose clients are on their way to another replica still count as online there.
        let end = Script::new(END);
        let mut call = end.prepare_invoke();
        call.key(self.redis.key("replicas", "")).arg(self.own.to_string());
        let _ = self.redis.script::<i64>("lease", &call).await;
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
        // The first renewal finds none, and that means nothing.
        let own_was_lost = held == 0 && std::mem::replace(&mut known.renewed, true);
        let somebody_died = known.alive.iter().any(|id| !alive.contains(id));
        // After Redis forgot everything, those who were there have a moment to come back.
        let mut somebody_is_gone = false;
        if faults::on(Mutant::GhostsNeverExpire) {
            let new: Vec<ReplicaId> = believed.into_iter().filter(|id| !known.believed.contains(id)).collect();
            known.believed.extend(new);
        } else if !own_was_lost {
            somebody_is_gone = known.believed.iter().any(|id| !believed.contains(id));
            known.believed = believed;
        }
        known.alive = alive;
        Ok(Renewal { somebody_died, somebody_is_gone, own_was_lost })
    }
}
