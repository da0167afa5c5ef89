//! Leases: which replicas are alive. Each renews its own in time; who does not is dead to the others.
//!
//! All are in one sorted set, by when they end. A replica is in it a second time, behind [`SAID`], once Redis knows
//! everybody who is connected to it: after Redis forgot everything, what it does not know means nothing before that. One
//! more entry names this memory of Redis. By it a replica notices that Redis forgot; its own lease does not tell, since a
//! renewal of before may arrive late and bring it back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::Script;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
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

/// What is before a replica whose word on its users is whole.
const SAID: &str = "said:";

/// Renews one's own lease by the clock of Redis, and tells who else has one. Answers whether one's own was still there,
/// the name of this memory, and each lease with the milliseconds since it ended (negative: it goes on). ARGV: the
/// replica, for how long, how long those that ended are kept, in which memory its word is whole.
const RENEW: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
    local memory = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
    if not memory then
        memory = 'memory:' .. ARGV[1] .. ':' .. string.format('%d', now)
        redis.call('ZADD', KEYS[1], '+inf', memory)
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
    if held and ARGV[4] == memory then
        redis.call('ZADD', KEYS[1], now + ARGV[2], 'said:' .. ARGV[1])
    else
        redis.call('ZREM', KEYS[1], 'said:' .. ARGV[1])
    end
    local all = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES')
    for index = 2, #all, 2 do all[index] = string.format('%d', now - all[index]) end
    return {held and 1 or 0, memory, all}";

/// Whose lease goes on or ended no longer than some milliseconds ago, by the clock of Redis.
const LISTED: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - ARGV[1]), '(+inf')";

/// Ends one's own lease at once, by the clock of Redis.
const END: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    return redis.call('ZADD', KEYS[1], 'XX', now, ARGV[1])";

/// Whether Redis knows who is connected to this replica, as far as it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// It does.
    Still,
    /// Not yet: this replica has just started.
    NotYet,
    /// Not any more: Redis lost what it knew, or this replica's lease was gone because it slept.
    NoMore,
}

/// What a renewal brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// A replica that was alive is not any more: it may have died with something untold.
    pub somebody_died: bool,
    /// A replica whose word on its users counted does not count any more: they are offline, unless another has them.
    pub somebody_is_gone: bool,
    /// What Redis knows of this replica's users.
    pub remembered: Remembered,
}

#[derive(Default)]
struct Known {
    /// The memory of Redis that the last renewal was in.
    memory: Option<String>,
    /// The memory that knows everybody who is connected to this replica.
    said: Option<String>,
    alive: Vec<ReplicaId>,
    believed: Vec<ReplicaId>,
    /// Replicas of whose users Redis does not know yet, and until when that is waited for.
    awaited: HashMap<ReplicaId, Instant>,
}

/// Entries of the set: the replicas, and those whose word is whole.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listed {
    replicas: Vec<ReplicaId>,
    said: Vec<ReplicaId>,
}

impl Listed {
    fn of<'a>(entries: impl Iterator<Item = &'a str>) -> Self {
        let mut listed = Self::default();
        for entry in entries {
            match entry.strip_prefix(SAID) {
                Some(id) => listed.said.extend(id.parse::<ReplicaId>().ok()),
                None => listed.replicas.extend(entry.parse::<ReplicaId>().ok()),
            }
        }
        listed
    }

    /// Those of whose users Redis does not know everything.
    fn unsaid(&self) -> impl Iterator<Item = ReplicaId> {
        self.replicas.iter().copied().filter(|id| !self.said.contains(id))
    }
}

impl Known {
    /// Waits for those who have not said who is with them, and for those who were there before Redis forgot.
    fn await_unsaid(&mut self, listed: &Listed, before: &[ReplicaId], now: Instant) {
        self.awaited.retain(|id, until| !listed.said.contains(id) && (*until > now || listed.replicas.contains(id)));
        let until = now + BELIEVED;
        self.awaited.extend(before.iter().filter(|id| !listed.said.contains(id)).map(|id| (*id, until)));
        for id in listed.unsaid() {
            self.awaited.entry(id).or_insert(until);
        }
    }

    /// Whether what Redis does not know of users means that they are not there.
    fn is_whole(&self, listed: &Listed, now: Instant) -> bool {
        let over = |id: &ReplicaId| self.awaited.get(id).is_some_and(|until| *until <= now);
        let missing = |id: &ReplicaId| !listed.said.contains(id) && !over(id);
        !listed.unsaid().any(|id| missing(&id)) && !self.awaited.keys().any(missing)
    }
}

/// The replicas whose word on their users counts, as Redis has it now.
#[derive(Debug)]
pub struct Believed {
    /// These. One that started since the last renewal is among them, and this one only if its lease was not lost.
    pub replicas: Vec<ReplicaId>,
    /// Whether what they have not said means that it is not so.
    pub is_whole: bool,
}

/// The replicas of the cluster, as far as this one knows.
pub struct Leases {
    redis: Arc<Redis>,
    own: ReplicaId,
    script: Script,
    listed: Script,
    known: Mutex<Known>,
    /// Wakes the next renewal: there is something to tell.
    said: Notify,
}

impl Leases {
    /// This replica's view. It holds no lease before the first renewal.
    pub fn new(redis: Arc<Redis>, own: ReplicaId) -> Self {
        let known = Mutex::new(Known { alive: vec![own], believed: vec![own], ..Known::default() });
        Self { redis, own, script: Script::new(RENEW), listed: Script::new(LISTED), known, said: Notify::new() }
    }

    /// This replica.
    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// The replicas whose word on their users counts, as of the last renewal.
    pub fn believed(&self) -> Vec<ReplicaId> {
        self.known.lock().believed.clone()
    }

    /// The same, as Redis has it now.
    ///
    /// # Errors
    /// [`Down`].
    pub async fn believed_now(&self) -> Result<Believed, Down> {
        if faults::on(Mutant::GhostsNeverExpire) {
            return Ok(Believed { replicas: self.believed(), is_whole: true });
        }
        let listed = self.listed_now(BELIEVED.saturating_sub(LEASE)).await?;
        let is_whole = self.known.lock().is_whole(&listed, Instant::now());
        Ok(Believed { replicas: listed.replicas, is_whole })
    }

    /// The memory of Redis that the last renewal was in.
    pub fn memory(&self) -> Option<String> {
        self.known.lock().memory.clone()
    }

    /// This memory of Redis knows everybody who is connected to this replica.
    pub fn has_said(&self, memory: String) {
        self.known.lock().said = Some(memory);
        self.said.notify_one();
    }

    /// The replicas that have a lease, as Redis has it now.
    ///
    /// # Errors
    /// [`Down`].
    pub async fn alive_now(&self) -> Result<Vec<ReplicaId>, Down> {
        Ok(self.listed_now(Duration::ZERO).await?.replicas)
    }

    /// The entries that go on or ended no longer than this ago.
    async fn listed_now(&self, late: Duration) -> Result<Listed, Down> {
        let mut call = self.listed.prepare_invoke();
        call.key(self.redis.key("replicas", "")).arg(i64::try_from(late.as_millis()).unwrap_or(i64::MAX));
        let entries: Vec<String> = self.redis.script("lease", &call).await?;
        Ok(Listed::of(entries.iter().map(String::as_str)))
    }

    /// Renews until `stop`, then gives the lease back. Tells each renewal to `then`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, then: impl Fn(Renewal) + Send) {
        let mut tick = tokio::time::interval(RENEW_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.said.notified() => {}
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
        let said = self.known.lock().said.clone().unwrap_or_default();
        call.key(self.redis.key("replicas", "")).arg(self.own.to_string()).arg(lease).arg(keep).arg(said);
        let (held, memory, all): (i64, String, Vec<(String, i64)>) = self.redis.script("lease", &call).await?;
        let of = |late_ms: i64| {
            let entries = all.iter().filter(move |(_, ended_ms)| *ended_ms < late_ms);
            Listed::of(entries.map(|(entry, _)| entry.as_str()))
        };
        let (alive, listed) = (of(0).replicas, of(keep - lease));
        metrics::replicas(alive.len());
        let now = Instant::now();
        let mut known = self.known.lock();
        let before = known.memory.replace(memory);
        let remembered = match before {
            // The first renewal finds nothing of this replica, and that means nothing.
            None => Remembered::NotYet,
            before if held == 0 || before != known.memory => Remembered::NoMore,
            Some(_) => Remembered::Still,
        };
        let somebody_died = known.alive.iter().any(|id| !alive.contains(id));
        // After Redis forgot everything, those who were there have as long to come back as they are believed.
        let mut before = Vec::new();
        if remembered == Remembered::NoMore {
            before.clone_from(&known.believed);
            known.said = None;
        }
        known.await_unsaid(&listed, &before, now);
        let mut believed = listed.replicas;
        let awaited = known.awaited.iter().filter(|(_, until)| **until > now).map(|(id, _)| *id);
        believed.extend(awaited.filter(|id| !believed.contains(id)).collect::<Vec<_>>());
        let mut somebody_is_gone = false;
        if faults::on(Mutant::GhostsNeverExpire) {
            believed.retain(|id| !known.believed.contains(id));
            known.believed.extend(believed);
        } else {
            somebody_is_gone = known.believed.iter().any(|id| !believed.contains(id));
            known.believed = believed;
        }
        known.alive = alive;
        Ok(Renewal { somebody_died, somebody_is_gone, remembered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(replicas: &[u64], said: &[u64]) -> Listed {
        let ids = |numbers: &[u64]| numbers.iter().map(|number| ReplicaId(*number)).collect();
        Listed { replicas: ids(replicas), said: ids(said) }
    }

    #[test]
    fn whoever_was_there_before_redis_forgot_is_waited_for_until_it_has_said_who_is_with_it() {
        let (start, mut known) = (Instant::now(), Known::default());
        let at = |s: u64| start + Duration::from_secs(s);
        let before = [ReplicaId(1), ReplicaId(2)];
        known.await_unsaid(&listed(&[1], &[]), &before, start);
        assert!(!known.is_whole(&listed(&[1], &[1]), at(1)), "2 is missing");
        known.await_unsaid(&listed(&[1, 2], &[1]), &[], at(2));
        assert!(!known.is_whole(&listed(&[1, 2], &[1]), at(2)), "2 is back and has not said it");
        assert!(!known.is_whole(&listed(&[1, 2, 3], &[1, 2]), at(2)), "3 just started");
        assert!(known.is_whole(&listed(&[1, 2], &[1, 2]), at(3)));
        known.await_unsaid(&listed(&[1, 2], &[1, 2]), &[], at(3));
        assert!(known.awaited.is_empty());
    }

    #[test]
    fn whoever_never_says_who_is_with_it_is_waited_for_as_long_as_it_is_believed() {
        let (start, mut known) = (Instant::now(), Known::default());
        let (dead, odd) = (ReplicaId(2), listed(&[1, 3], &[1]));
        known.await_unsaid(&odd, &[dead], start);
        let later = start + BELIEVED;
        assert!(!known.is_whole(&odd, later - Duration::from_millis(1)) && known.is_whole(&odd, later));
        known.await_unsaid(&odd, &[], later);
        assert_eq!(known.awaited.keys().collect::<Vec<_>>(), [&ReplicaId(3)], "it is there and not waited for again");
        assert!(known.is_whole(&odd, later));
    }

    #[test]
    fn an_entry_is_a_replica_or_says_that_its_word_is_whole() {
        let entries = ["0000000000000001", "said:0000000000000001", "0000000000000002", "what"];
        let found = Listed::of(entries.into_iter());
        assert_eq!(found, listed(&[1, 2], &[1]));
        assert_eq!(found.unsaid().collect::<Vec<_>>(), [ReplicaId(2)]);
    }
}
