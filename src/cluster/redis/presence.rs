//! Presence in Redis: each replica keeps one hash of its own, from user id to number of
//! connections.
//!
//! The hash expires unless the replica refreshes it. The other replicas read it only while the
//! replica is listed (`lease.rs`). A replica is **synced** once its hash holds all of its users in
//! the present epoch of Redis; the field `epoch` then contains that epoch. After a failed call, and
//! when Redis lost the hash, the replica writes the complete hash again. While a listed replica is
//! not synced, a user found in no hash is unknown rather than offline.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::{Pipeline, Script, cmd};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::{Leases, Listed, NOTICED_AFTER, TAG, milliseconds};
use super::link::{Down, Redis};
use super::replica_id::ReplicaId;
use crate::cluster::presence::ConnectionSlots;
use crate::cluster::{BoxFuture, Entered, Presence, TooMany};
use crate::metrics;
use crate::model::limits::{PRESENCE_SYNC_MAX, PRESENCE_WAIT_MAX};
use crate::model::{Error, Result, UserId};

/// How long Redis keeps a hash that its replica does not refresh: longer than a dead replica is
/// listed.
const HASH_LIFE: Duration = Duration::from_secs(30);
/// Pause before a read is repeated because a replica was not synced.
const READ_RETRY: Duration = Duration::from_millis(100);
/// Users written in one round trip.
const BATCH: usize = 256;

/// Writes users into the replica's hash, KEYS[1], and refreshes it. KEYS[2..] are the hashes of the
/// other living replicas. ARGV: a sequence number, 1 to begin the hash anew, the epoch in which the
/// hash is complete with this write (or an empty string), the life of the hash in ms, and per user
/// the id and the number of connections (below 0: the user is offline here). Returns 1, and per
/// user the number of connections in the other hashes.
///
/// Writes and returns nothing if the previous write is not in the hash. Redis may have lost the
/// hash, or in a failover its last writes. Also, a write that timed out may arrive after later
/// ones: it must not bring back a user that has left since.
const WRITE: &str = "
    local last, seq = tonumber(redis.call('HGET', KEYS[1], 'seq')), tonumber(ARGV[1])
    if ARGV[2] == '1' then
        if last and last >= seq then return {} end
        redis.call('DEL', KEYS[1])
    elseif last ~= seq - 1 then
        return {}
    end
    redis.call('HSET', KEYS[1], 'seq', ARGV[1])
    if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'epoch', ARGV[3]) end
    local answer = {1}
    for index = 5, #ARGV, 2 do
        local user, count, elsewhere = ARGV[index], tonumber(ARGV[index + 1]), 0
        if count < 0 then
            redis.call('HDEL', KEYS[1], user)
        else
            redis.call('HSET', KEYS[1], user, count)
        end
        for other = 2, #KEYS do
            elsewhere = elsewhere + (tonumber(redis.call('HGET', KEYS[other], user)) or 0)
        end
        answer[#answer + 1] = elsewhere
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return answer";

/// Presence over all replicas that share a Redis.
pub struct RedisPresence {
    redis: Arc<Redis>,
    leases: Arc<Leases>,
    script: Script,
    slots: ConnectionSlots,
    changes: Mutex<Changes>,
    changed: Notify,
    written: watch::Sender<Written>,
}

/// Users whose number of connections changed since the last write.
#[derive(Default)]
struct Changes {
    users: HashSet<UserId>,
    /// Changes since the start of the replica.
    count: u64,
}

/// The progress of the writer.
#[derive(Clone, Default)]
struct Written {
    /// Changes that the writer has tried to write.
    changes: u64,
    /// Calls so far, which is the sequence number of the last one.
    calls: u64,
    /// The epoch in which the hash is complete; `None` after a failure.
    synced_in: Option<String>,
}

impl RedisPresence {
    /// The presence of the replicas that have a lease in this Redis. [`RedisPresence::run`] must
    /// run.
    pub fn new(redis: Arc<Redis>, leases: Arc<Leases>) -> Self {
        Self {
            redis,
            leases,
            script: Script::new(WRITE),
            slots: ConnectionSlots::default(),
            changes: Mutex::default(),
            changed: Notify::new(),
            written: watch::Sender::default(),
        }
    }

    /// Wakes the writer. Called after each attempt to renew this replica's lease: the writer
    /// refreshes the hash, and writes it anew in another epoch.
    pub fn renewed(&self) {
        self.changed.notify_one();
    }

    /// Writes changes until `stop`, then the remaining ones. After a failure the next renewal
    /// starts the next attempt.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(self.changed.notified()).await.is_some() {
            self.write_changes().await;
        }
        self.write_changes().await;
    }

    /// Records that a user's number of connections changed. Returns the number of the change.
    fn change(&self, user: UserId) -> u64 {
        let mut changes = self.changes.lock();
        changes.users.insert(user);
        changes.count += 1;
        self.changed.notify_one();
        changes.count
    }

    /// Waits until the writer has tried to write a change. Returns false if it failed, or did not
    /// end in time.
    async fn wait_for(&self, change: u64) -> bool {
        let mut written = self.written.subscribe();
        let wait = written.wait_for(|written| written.changes >= change);
        let written = tokio::time::timeout(PRESENCE_WAIT_MAX, wait).await;
        matches!(written, Ok(Ok(written)) if written.synced_in.is_some())
    }

    /// Writes the changes, or the complete hash if this replica is not synced.
    async fn write_changes(&self) {
        // Taken before the slots are read: a change from here on is written next time, and possibly
        // also this time.
        let Changes { users, count } = {
            let mut changes = self.changes.lock();
            Changes { users: std::mem::take(&mut changes.users), count: changes.count }
        };
        let mut written = self.written.borrow().clone();
        written.changes = count;

        // Without an epoch this replica holds no lease. While calls pause, an attempt would fail.
        let before = written.synced_in.take();
        if let Some(epoch) = self.leases.epoch().filter(|_| !self.redis.is_paused()) {
            let begins = before.as_ref() != Some(&epoch);
            let users = if begins { self.slots.users() } else { users.into_iter().collect() };
            if self.write(&users, begins, &epoch, &mut written.calls).await.is_ok() {
                written.synced_in = Some(epoch);
            }
        }
        self.written.send_replace(written);
    }

    /// Writes users in one or more calls. Without users there is one call, too: each call refreshes
    /// the hash and detects that Redis lost it. The last call completes the hash.
    async fn write(
        &self,
        users: &[UserId],
        begins: bool,
        epoch: &str,
        calls: &mut u64,
    ) -> Result<(), Down> {
        let batches = users.len().div_ceil(BATCH).max(1);
        for number in 0..batches {
            let batch = users.chunks(BATCH).nth(number).unwrap_or_default();
            *calls += 1;

            let mut call = self.script.prepare_invoke();
            call.key(self.hash_of(self.leases.own()));
            for other in self.leases.others_alive() {
                call.key(self.hash_of(other));
            }
            call.arg(*calls).arg(i64::from(begins && number == 0));
            call.arg(if number + 1 == batches { epoch } else { "" }).arg(milliseconds(HASH_LIFE));
            for user in batch {
                let count = self
                    .slots
                    .here(*user)
                    .map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
                call.arg(user.to_string()).arg(count);
            }

            let answer: Vec<usize> = self.redis.script("presence_write", &call).await?;
            let (_, elsewhere) = answer.split_first().ok_or(Down)?;
            self.slots.set_elsewhere(batch.iter().copied().zip(elsewhere.iter().copied()));
        }
        Ok(())
    }

    fn hash_of(&self, id: ReplicaId) -> String {
        self.redis.key(&format!("online:{id}"), TAG)
    }

    /// Reads the leases and the hashes in one round trip, and once more if a replica joined
    /// meanwhile. Returns whether each user is online; `None` if a user was not found and a replica
    /// is not synced.
    async fn read(&self, users: &[UserId]) -> Result<Option<Vec<bool>>, Down> {
        let fields: Vec<String> = users.iter().map(ToString::to_string).collect();
        let mut asked = self.leases.listed();

        loop {
            // The hash of this replica may be behind its slots, which `found` uses instead.
            asked.retain(|id| *id != self.leases.own());

            let mut pipeline = Pipeline::with_capacity(asked.len() + 1);
            pipeline.add_command(self.leases.list_command());
            for id in &asked {
                let mut get = cmd("HMGET");
                get.arg(self.hash_of(*id)).arg("epoch").arg(&fields);
                pipeline.add_command(get);
            }

            let answers: Vec<Vec<Option<String>>> =
                self.redis.pipeline("presence_read", &pipeline).await?;
            let (entries, hashes) = answers.split_first().ok_or(Down)?;
            let listed = Listed::of(entries);

            // A hash of a replica that is no longer listed does not count.
            if listed.replicas.iter().all(|id| *id == self.leases.own() || asked.contains(id)) {
                let hashes =
                    asked.iter().zip(hashes).filter(|(id, _)| listed.replicas.contains(id));
                let hashes: Vec<_> = hashes.map(|(_, hash)| hash.as_slice()).collect();
                return Ok(self.found(users, listed.epoch.as_deref(), &hashes));
            }

            asked = listed.replicas;
        }
    }

    /// Joins this replica's users with the hashes of the other listed replicas.
    fn found(
        &self,
        users: &[UserId],
        epoch: Option<&str>,
        hashes: &[&[Option<String>]],
    ) -> Option<Vec<bool>> {
        let settled = epoch.is_some_and(|epoch| self.leases.is_settled(epoch));
        let synced = settled
            && hashes.iter().all(|hash| hash.first().is_some_and(|it| it.as_deref() == epoch));

        let elsewhere =
            |index: usize| hashes.iter().any(|hash| matches!(hash.get(index + 1), Some(Some(_))));
        let online = users.iter().enumerate();
        let online: Vec<_> = online
            .map(|(index, user)| self.slots.here(*user).is_some() || elsewhere(index))
            .collect();
        (synced || online.iter().all(|online| *online)).then_some(online)
    }
}

impl Presence for RedisPresence {
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>> {
        Box::pin(async move {
            // The slot is taken first, and written with the same call that reads the other
            // replicas. Of two concurrent calls on two replicas, the later one sees both slots.
            let (here, entered) = self.slots.take(user, max)?;
            let change = self.change(user);
            if !self.wait_for(change).await {
                metrics::presence_unsynced_connection();
            } else if here + self.slots.elsewhere(user) > max {
                // The user stays online by the connections elsewhere.
                if self.slots.give_back(user) {
                    self.slots.withdraw(&[user]);
                }
                self.change(user);
                return Err(TooMany);
            }

            Ok(entered)
        })
    }

    fn leave(&self, user: UserId) -> bool {
        let last = self.slots.give_back(user);
        self.change(user);
        last
    }

    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>> {
        Box::pin(async move {
            let gone = self.slots.withdraw(users);
            if let Some(change) = gone.iter().map(|user| self.change(*user)).last() {
                self.wait_for(change).await;
            }
            gone
        })
    }

    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            let deadline = Instant::now() + PRESENCE_SYNC_MAX;
            loop {
                match self.read(users).await {
                    Ok(Some(online)) => return Ok(online),
                    Ok(None) if Instant::now() < deadline => tokio::time::sleep(READ_RETRY).await,
                    _ => return Err(Error::overloaded()),
                }
            }
        })
    }

    fn connected(&self) -> Vec<UserId> {
        self.slots.connected()
    }

    fn slot_ttl(&self) -> Duration {
        NOTICED_AFTER
    }
}
