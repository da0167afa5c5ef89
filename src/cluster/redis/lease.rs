//! Leases: which replicas are alive.
//!
//! # State
//!
//! One sorted set in Redis holds one lease per replica, scored by the end of the lease in
//! milliseconds. A replica is **alive** until its lease ends, [`LEASE`] after its last renewal. It
//! stays **listed** for [`GRACE`] after that; then the next renewal by any replica removes it.
//!
//! One more entry, scored `+inf`, names the **epoch of Redis**: the period since the set was last
//! lost, by a wipe, an eviction or a failover. It is unrelated to the epoch of the chat log.
//!
//! # Uses
//!
//! A lease is not a lock: it permits nothing, so it needs no fencing token, and a replica that
//! outlives its lease cannot corrupt anything. The other replicas draw three conclusions from it:
//!
//! - A replica that is no longer alive may have committed an event without publishing it. The hubs
//!   compare their chats with the store once. If the replica had only stalled, the comparison was
//!   superfluous, since the replica publishes the event when it continues.
//! - Its connection slots no longer count. If it had only stalled, its users can meanwhile exceed
//!   the maximum of connections.
//! - Once it is no longer listed, its users are offline unless they are connected elsewhere. If it
//!   was only cut off from Redis, they are shown offline wrongly. Reads are right again once it has
//!   renewed and written its hash. Watchers that were sent the wrong state are corrected by the
//!   next periodic resync (30 s), since the return of a replica causes no resync.
//!
//! # Invariants
//!
//! 1. A renewal is one script, so Redis executes renewals one after the other. It reads the clock,
//!    writes, and lists the set atomically. Two renewals cannot create two epochs.
//! 2. A lease is extended only by its own replica, except that the first renewal of a replica in
//!    another epoch puts back the replicas that it had listed. `NX` keeps this from shortening or
//!    extending a lease that is in the set already.
//! 3. In a new epoch, a living replica is missing from the set only until it renews, or until a
//!    replica that had listed it renews. Until both had time ([`EPOCH_SETTLES_AFTER`] and its
//!    limit), no user is taken for offline, not even by a replica that has just started.
//! 4. While a listed replica has not written its complete hash in the present epoch, a user found
//!    nowhere is unknown, not offline (`presence.rs`). So a replica that is listed too long keeps
//!    its own users online or delays an answer, but never has an online user taken for offline.
//!
//! # Clocks
//!
//! Only the clock of Redis decides when a lease ends. The wall clocks of the replicas are not used.
//! The monotonic clock of a replica paces its renewals and times the settling of an epoch. The
//! clock of Redis is a wall clock and may step; a failover to a server with another clock is such a
//! step:
//!
//! - Forwards by more than [`LEASE`]: the other replicas appear dead until they renew. That costs
//!   each replica one resync, and connection slots do not count meanwhile. By more than [`LEASE`]
//!   and [`GRACE`] together: the first renewal removes them, and their users are shown offline as
//!   after a cut.
//! - Backwards: a dead replica is alive for longer by the step. A living one overwrites its lease
//!   with its next renewal. If the step goes back beyond the creation of the epoch, the age of the
//!   epoch counts as 0, and the epoch settles only after the clock has caught up. Until then a user
//!   found nowhere is unknown.
//!
//! # Races
//!
//! - A renewal that timed out may be executed later. The lease begins with the execution, not with
//!   the call, so the death or the stop of its replica is noticed later by as much.
//! - A replica has one renewal in progress at a time, and drops a connection whose call timed out.
//!   So an older answer never replaces a newer one.
//! - The answer of a renewal is used until the next one succeeds. While Redis is away it gets old,
//!   but then reads of presence fail as well. A death meanwhile is reported by the next success.
//! - Redis replicates asynchronously, so a failover may lose the last renewals. Each replica renews
//!   again within [`RENEW_EVERY`] of reaching the new master. While two masters accept writes, each
//!   lists only the replicas that reach it, and the others are cut off.
//! - A replica that was cut off since an earlier epoch may put back replicas that died meanwhile.
//!   They are listed for [`LEASE`] and [`GRACE`] once more (invariant 4).
//! - While a replica is cut off from Redis, its hash is out of date. Users that connected or left
//!   meanwhile are read in their old state until the replica writes its hash again.
//! - The database may complete a commit of a killed replica after the hubs compared their chats.
//!   The next periodic resync finds it.
//!
//! # Trust
//!
//! The set is not sealed. Anyone with write access to Redis can falsify presence and the maximum of
//! connections, and cause resyncs. No message or session depends on the set.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::{Cmd, Script, cmd};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{Down, Redis};
use super::replica_id::ReplicaId;
use crate::metrics;
use crate::model::faults::{self, Mutant};

/// How long a replica is alive after its last renewal: two renewals in a row may fail. The others
/// notice a death within this and [`RENEW_EVERY`].
const LEASE: Duration = Duration::from_secs(3);
/// How long the users of a replica stay online after its lease ended, so that a stall or a cut of a
/// few seconds does not show them offline.
const GRACE: Duration = Duration::from_secs(7);
/// Pause between two renewals.
const RENEW_EVERY: Duration = Duration::from_millis(750);
/// Age from which an epoch is settled: by then each living replica is expected to have renewed in
/// it. A renewal that fails at once is repeated within this time, one that times out may be late. A
/// replica that takes longer is still waited for if another replica put it back.
const EPOCH_SETTLES_AFTER: Duration = Duration::from_secs(2);
/// Within this time after the last renewal of a replica, the others regard it as dead: [`LEASE`],
/// [`RENEW_EVERY`], and 250 ms for the calls. It takes longer only if their own renewals fail.
pub(super) const NOTICED_AFTER: Duration = Duration::from_secs(4);

/// The keys of leases and presence share this tag, so that one node of a Redis Cluster has all of
/// them and one pipeline or script may name them together.
pub(super) const TAG: &str = "presence";

/// Renews the lease of one replica:
///
/// 1. creates an epoch if the set has none, named after the replica and the time;
/// 2. in an epoch that the replica has not seen, puts back the replicas that it had listed;
/// 3. sets the end of the replica's own lease;
/// 4. removes the replicas whose grace is over;
/// 5. returns the epoch, its age, and each lease with the time to its end, which is negative after
///    the end.
///
/// ARGV: the replica, the lease, the grace, the last epoch that the replica saw, and the replicas
/// that it had listed. All times are in milliseconds.
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
    /// The epoch of Redis; `None` if no replica has renewed since Redis lost the set.
    pub epoch: Option<String>,
    /// The replicas that are alive, or whose lease ended less than [`GRACE`] ago.
    pub replicas: Vec<ReplicaId>,
}

impl Listed {
    /// Parses the answer of [`Leases::list_command`]. The one entry that is not a replica is the
    /// epoch.
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

/// The answer of the last successful renewal.
#[derive(Default)]
struct LastRenewal {
    epoch: Option<String>,
    /// When the epoch settles or settled, by the clock of this replica.
    settled_at: Option<Instant>,
    listed: Vec<ReplicaId>,
    alive: Vec<ReplicaId>,
}

/// This replica's lease, and the leases of the cluster as of this replica's last renewal.
pub struct Leases {
    redis: Arc<Redis>,
    own: ReplicaId,
    script: Script,
    /// Written only by [`Self::renew`].
    last: Mutex<LastRenewal>,
}

impl Leases {
    /// Makes no call: the replica holds no lease before [`Leases::run`].
    pub fn new(redis: Arc<Redis>, own: ReplicaId) -> Self {
        Self { redis, own, script: Script::new(RENEW), last: Mutex::default() }
    }

    /// The id of this replica.
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// The replicas whose users count as online.
    pub fn listed(&self) -> Vec<ReplicaId> {
        self.last.lock().listed.clone()
    }

    /// The other replicas that are alive.
    pub fn others_alive(&self) -> Vec<ReplicaId> {
        self.last.lock().alive.iter().copied().filter(|id| *id != self.own).collect()
    }

    /// The epoch of Redis; `None` before the first renewal.
    pub fn epoch(&self) -> Option<String> {
        self.last.lock().epoch.clone()
    }

    /// Whether this is the epoch of the last renewal, and old enough for every living replica to be
    /// listed.
    pub fn is_settled(&self, epoch: &str) -> bool {
        let last = self.last.lock();
        last.epoch.as_deref() == Some(epoch)
            && last.settled_at.is_some_and(|at| at <= Instant::now())
    }

    /// The command whose answer [`Listed::of`] parses. It compares no times: each renewal removes
    /// the replicas whose grace is over, so one is listed for at most [`RENEW_EVERY`] longer.
    pub(super) fn list_command(&self) -> Cmd {
        let mut list = cmd("ZRANGE");
        list.arg(self.key()).arg(0).arg(-1);
        list
    }

    /// Renews the lease until `stop`, then ends it. After each attempt, calls `attempted` with
    /// whether a replica was lost since the last successful renewal: either its lease ended, so
    /// that its last events may be unpublished, or it is no longer listed, so that its users are
    /// offline unless they are connected elsewhere. A failed attempt reports no loss.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, attempted: impl Fn(bool) + Send) {
        let mut tick = tokio::time::interval(RENEW_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => attempted(self.renew(LEASE).await.unwrap_or(false)),
            }
        }

        // The replica stays listed for the grace: its clients are moving to other replicas, and
        // their users stay online. If this call fails, the lease ends by itself.
        let _ = self.renew(Duration::ZERO).await;
    }

    /// Sets the end of the lease to `lease` from now. Returns whether a replica was lost.
    async fn renew(&self, lease: Duration) -> Result<bool, Down> {
        let (epoch, listed) = {
            let last = self.last.lock();
            (last.epoch.clone().unwrap_or_default(), last.listed.clone())
        };
        let grace_ms = faults::choose(Mutant::DeadReplicasStayOnline, milliseconds(GRACE), 1 << 40);

        let mut call = self.script.prepare_invoke();
        call.key(self.key())
            .arg(self.own.to_string())
            .arg(milliseconds(lease))
            .arg(grace_ms)
            .arg(epoch);
        for id in listed {
            call.arg(id.to_string());
        }
        let (epoch, age_ms, leases): (String, i64, Vec<(String, i64)>) =
            self.redis.script("lease", &call).await?;

        // Negative if the clock of Redis stepped back beyond the creation of the epoch.
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or_default());
        let ids = |left_ms: i64| {
            let some = leases.iter().filter(move |(_, left)| *left > left_ms);
            some.filter_map(|(id, _)| id.parse().ok()).collect::<Vec<ReplicaId>>()
        };
        let now = LastRenewal {
            epoch: Some(epoch),
            // The age was measured before the answer travelled, so this is late rather than early.
            settled_at: Some(Instant::now() + EPOCH_SETTLES_AFTER.saturating_sub(age)),
            listed: ids(i64::MIN),
            alive: ids(0),
        };
        metrics::replicas(now.alive.len());

        // Compared with the last success, not the last attempt, so that a replica that died while
        // Redis was away is reported.
        let mut last = self.last.lock();
        let before = std::mem::replace(&mut *last, now);
        let died = before.alive.iter().any(|id| !last.alive.contains(id));
        Ok(died || before.listed.iter().any(|id| !last.listed.contains(id)))
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
