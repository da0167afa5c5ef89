//! Leases: which replicas are alive. Each replica renews its own lease; one that stops is dead.
//!
//! One sorted set holds the leases of all replicas, scored by their end in the clock of Redis. A
//! lease stays in the set for [`GRACE`] after its end: a short stall is no death. One more entry,
//! scored `+inf`, names the **epoch** of Redis: the time since Redis was last empty.
//!
//! After Redis lost its data, the first renewal creates another epoch, and each replica puts the
//! replicas that it knew back into the set. So every replica, also one that starts right then,
//! waits for those that have not renewed yet, instead of taking them for dead.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::{Cmd, Script, cmd};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReplicaId;
use super::link::{Down, Redis};
use crate::metrics;
use crate::model::faults::{self, Mutant};

/// How long a replica is alive after its last renewal. With [`RENEW_EVERY`] it bounds how late the
/// others notice a death, after which they compare their chats with the store.
const LEASE: Duration = Duration::from_secs(3);
/// How long the users of a replica stay online after its lease ended.
const GRACE: Duration = Duration::from_secs(7);
/// Pause between two renewals.
const RENEW_EVERY: Duration = Duration::from_millis(750);
/// Age from which an epoch is settled: each living replica has renewed in it, and has put back the
/// replicas that it knew. More than [`RENEW_EVERY`] and a call of Redis that fails once.
const EPOCH_SETTLES_AFTER: Duration = Duration::from_secs(2);
/// How long a lease counts at most for a replica that learns of the others by its own renewals.
pub(super) const NOTICED_AFTER: Duration = Duration::from_secs(4);

/// The keys of leases and presence share this tag, so that one node of a Redis Cluster has all of
/// them and one pipeline or script may name them together.
pub(super) const TAG: &str = "presence";

/// Renews one's own lease. Answers the epoch, its age, and each lease with the time to its end,
/// which is negative after it. ARGV: the replica, the lease, how long ended leases are kept, the
/// epoch that the replica knew, and the replicas that it knew. All times are milliseconds.
const RENEW: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local epoch = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
    if not epoch then
        epoch = 'epoch:' .. ARGV[1] .. ':' .. string.format('%d', now)
        redis.call('ZADD', KEYS[1], '+inf', epoch)
    end
    if epoch ~= ARGV[4] then
        for index = 5, #ARGV do redis.call('ZADD', KEYS[1], 'NX', now + ARGV[2], ARGV[index]) end
    end
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
    local all = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES')
    for index = 2, #all, 2 do all[index] = string.format('%d', all[index] - now) end
    return {epoch, now - string.match(epoch, '%d+$'), all}";

/// The set of leases at one time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// The epoch of Redis; `None` if no replica has renewed since Redis lost its data.
    pub epoch: Option<String>,
    /// The replicas that are alive, or whose lease ended less than [`GRACE`] ago.
    pub replicas: Vec<ReplicaId>,
}

impl Listed {
    /// Reads the entries of the set.
    pub fn of(entries: &[Option<String>]) -> Self {
        let mut listed = Self::default();
        for entry in entries.iter().flatten() {
            match entry.parse() {
                Ok(id) => listed.replicas.push(id),
                Err(_) => listed.epoch = Some(entry.clone()),
            }
        }
        listed
    }
}

/// What this replica learned by its last renewal.
#[derive(Default)]
struct Known {
    epoch: Option<String>,
    /// When the epoch settles, or settled.
    settled_at: Option<Instant>,
    listed: Vec<ReplicaId>,
    alive: Vec<ReplicaId>,
}

/// The replicas of the cluster, as far as this replica knows.
pub struct Leases {
    redis: Arc<Redis>,
    own: ReplicaId,
    script: Script,
    known: Mutex<Known>,
}

impl Leases {
    /// This replica's view. The replica holds no lease before the first renewal.
    pub fn new(redis: Arc<Redis>, own: ReplicaId) -> Self {
        Self { redis, own, script: Script::new(RENEW), known: Mutex::default() }
    }

    /// This replica.
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// The replicas whose users count as online, as of the last renewal.
    pub fn listed(&self) -> Vec<ReplicaId> {
        self.known.lock().listed.clone()
    }

    /// The other replicas that are alive, as of the last renewal.
    pub fn others_alive(&self) -> Vec<ReplicaId> {
        self.known.lock().alive.iter().copied().filter(|id| *id != self.own).collect()
    }

    /// The epoch of Redis, as of the last renewal.
    pub fn epoch(&self) -> Option<String> {
        self.known.lock().epoch.clone()
    }

    /// Whether this is the epoch of the last renewal, and every living replica is in the set.
    pub fn is_settled(&self, epoch: &str) -> bool {
        let known = self.known.lock();
        known.epoch.as_deref() == Some(epoch)
            && known.settled_at.is_some_and(|at| at <= Instant::now())
    }

    /// The command whose answer [`Listed::of`] reads. It needs no clock, since each renewal removes
    /// the leases that ended too long ago.
    pub(super) fn list_command(&self) -> Cmd {
        let mut list = cmd("ZRANGE");
        list.arg(self.key()).arg(0).arg(-1);
        list
    }

    /// Renews until `stop`, then ends the lease. After each attempt, `then` learns whether a
    /// replica was lost: its lease ended, so that its last events may be unpublished, or it left
    /// the set, so that its users are offline unless they are connected elsewhere.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, then: impl Fn(bool) + Send) {
        let mut tick = tokio::time::interval(RENEW_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => then(self.renew(LEASE).await.unwrap_or(false)),
            }
        }

        // The entry stays for the grace: users whose clients move to another replica stay online.
        let _ = self.renew(Duration::ZERO).await;
    }

    /// Renews the lease once. Returns whether a replica was lost.
    async fn renew(&self, lease: Duration) -> Result<bool, Down> {
        let (epoch, listed) = {
            let known = self.known.lock();
            (known.epoch.clone().unwrap_or_default(), known.listed.clone())
        };
        let kept_ms =
            if faults::on(Mutant::GhostsNeverExpire) { 1 << 40 } else { milliseconds(GRACE) };
        let mut call = self.script.prepare_invoke();
        call.key(self.key())
            .arg(self.own.to_string())
            .arg(milliseconds(lease))
            .arg(kept_ms)
            .arg(epoch);
        for id in listed {
            call.arg(id.to_string());
        }

        let (epoch, age_ms, leases): (String, i64, Vec<(String, i64)>) =
            self.redis.script("lease", &call).await?;
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or_default());
        let ids = |left_ms: i64| {
            let some = leases.iter().filter(move |(_, left)| *left > left_ms);
            some.filter_map(|(id, _)| id.parse().ok()).collect::<Vec<ReplicaId>>()
        };
        let now = Known {
            epoch: Some(epoch),
            settled_at: Some(Instant::now() + EPOCH_SETTLES_AFTER.saturating_sub(age)),
            listed: ids(i64::MIN),
            alive: ids(0),
        };
        metrics::replicas(now.alive.len());

        let before = std::mem::replace(&mut *self.known.lock(), now);
        let known = self.known.lock();
        let died = before.alive.iter().any(|id| !known.alive.contains(id));
        Ok(died || before.listed.iter().any(|id| !known.listed.contains(id)))
    }

    fn key(&self) -> String {
        self.redis.key("leases", TAG)
    }
}

/// A duration as scripts take it.
pub(super) fn milliseconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_lists_replicas_and_the_epoch() {
        let entries = ["0000000000000001", "00000000000000ff", "epoch:0000000000000001:7"];
        let listed = Listed::of(&entries.map(|entry| Some(entry.to_owned())));
        assert_eq!(listed.replicas, [ReplicaId(1), ReplicaId(255)]);
        assert_eq!(listed.epoch.as_deref(), Some("epoch:0000000000000001:7"));
        assert_eq!(Listed::of(&[]), Listed::default());
    }
}
