//! Presence in Redis: each replica keeps one hash of its own, from user id to number of connections.
//!
//! The hash expires unless the replica refreshes it, and the other replicas read it only while the
//! replica's lease is listed. A replica is **synced** once its hash holds all of its users in the
//! present epoch of Redis: the field `epoch` says so. After a failed call, and when Redis lost the hash,
//! the replica writes the complete hash again. While a listed replica is not synced, a user found in no
//! hash is unknown rather than offline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bb8_redis::redis::{Pipeline, Script, cmd};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReplicaId;
use super::lease::{Leases, Listed, NOTICED_AFTER, TAG, milliseconds};
use super::link::{Down, Redis};
use crate::cluster::presence::ConnectionSlots;
use crate::cluster::{BoxFuture, Entered, Presence, TooMany};
use crate::metrics;
use crate::model::limits::{PRESENCE_SYNC_MAX, PRESENCE_WAIT_MAX};
use crate::model::{Error, Result, UserId};

/// How long Redis keeps a hash that its replica does not refresh. Longer than a dead replica is listed.
const HASH_LIFE: Duration = Duration::from_secs(30);
/// Pause before a read that met a replica without a synced hash is repeated.
const READ_RETRY: Duration = Duration::from_millis(100);
/// Users written in one round trip.
const BATCH: usize = 256;

/// Writes users into the replica's hash, KEYS[1], and refreshes it. KEYS[2..] are the hashes of the
/// other living replicas. ARGV: a sequence number, 1 to begin the hash anew, the epoch in which the hash
/// is complete with this write (or nothing), the life of the hash in ms, and per user: the id, the
/// number of connections (below 0: the user is offline here) and the maximum on all replicas (below 0:
/// none). Answers 1, and per user 1 if written or 0 if over the maximum.
///
/// Answers nothing if the hash is lost, or if a later write came first: a write that was given up may
/// still arrive, and must not bring back a user that has left since.
const WRITE: &str = "
    local last, starts = tonumber(redis.call('HGET', KEYS[1], 'seq')), ARGV[2] == '1'
    if (last and last >= tonumber(ARGV[1])) or not (last or starts) then return {} end
    if starts then redis.call('DEL', KEYS[1]) end
    redis.call('HSET', KEYS[1], 'seq', ARGV[1])
    local written = {1}
    for index = 5, #ARGV, 3 do
        local user, count, max = ARGV[index], tonumber(ARGV[index + 1]), tonumber(ARGV[index + 2])
        local total, fits = count, 1
        if max >= 0 then
            for other = 2, #KEYS do
                total = total + (tonumber(redis.call('HGET', KEYS[other], user)) or 0)
            end
            if total > max then fits = 0 end
        end
        if count < 0 then
            redis.call('HDEL', KEYS[1], user)
        elseif fits == 1 then
            redis.call('HSET', KEYS[1], user, count)
        end
        written[#written + 1] = fits
    end
    if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'epoch', ARGV[3]) end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return written";

/// Presence over all replicas that share a Redis.
pub struct RedisPresence {
    redis: Arc<Redis>,
    leases: Arc<Leases>,
    script: Script,
    slots: ConnectionSlots,
    queue: Mutex<Queue>,
    queued: Notify,
    sequence: AtomicU64,
}

/// What is to be written, in order.
#[derive(Default)]
struct Queue {
    writes: VecDeque<Write>,
    /// The epoch in which the hash is complete, or is being completed.
    synced_in: Option<String>,
}

/// A user whose number of connections is to be written.
struct Write {
    user: UserId,
    /// The number and the maximum on all replicas, for a connection that waits for its slot. Otherwise
    /// the number at the time of the write is written, whatever the other replicas hold.
    bound: Option<(usize, usize)>,
    /// Gets whether the user is within the maximum. Dropped if Redis failed.
    done: Option<oneshot::Sender<bool>>,
}

/// What this write does to the hash besides its users.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step<'a> {
    Begin,
    Update,
    /// The hash is complete in this epoch.
    Complete(&'a str),
}

/// What a read found.
struct Found {
    online: Vec<bool>,
    /// Whether the users that were not found are offline.
    synced: bool,
}

impl RedisPresence {
    /// Presence in this Redis, of the replicas that have a lease. [`RedisPresence::run`] must run.
    pub fn new(redis: Arc<Redis>, leases: Arc<Leases>) -> Self {
        Self {
            redis,
            leases,
            script: Script::new(WRITE),
            slots: ConnectionSlots::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
            sequence: AtomicU64::new(0),
        }
    }

    /// Takes note of an attempt to renew this replica's lease. The writer refreshes the hash, and writes
    /// it anew in another epoch.
    pub fn renewed(&self) {
        self.queued.notify_one();
    }

    /// Writes what is queued until `stop`, then what is left. After a failure the next renewal starts
    /// the next attempt.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.queued.notified() => {}
            }
            if self.write_queued().await.is_err() {
                self.unsync();
            }
        }
        let _ = self.write_queued().await;
    }

    /// Has the complete hash written again. What is queued is part of that; the connections that wait
    /// are admitted without an answer.
    fn unsync(&self) {
        let mut queue = self.queue.lock();
        queue.synced_in = None;
        queue.writes.clear();
    }

    async fn write_queued(&self) -> Result<(), Down> {
        let epoch = self.leases.epoch().ok_or(Down)?;
        if self.queue.lock().synced_in.as_ref() != Some(&epoch) {
            self.sync(&epoch).await?;
        }

        // At least one write, since each refreshes the hash and finds out whether it is still there.
        loop {
            let batch = self.take_batch();
            self.write(Step::Update, batch).await?;
            if self.queue.lock().writes.is_empty() {
                return Ok(());
            }
        }
    }

    async fn sync(&self, epoch: &str) -> Result<(), Down> {
        // Set before the users are read: a change from here on is queued behind them.
        self.queue.lock().synced_in = Some(epoch.to_owned());
        let users = self.slots.users();

        self.write(Step::Begin, Vec::new()).await?;
        for batch in users.chunks(BATCH) {
            self.write(Step::Update, batch.iter().copied().map(Write::count_of).collect()).await?;
        }
        self.write(Step::Complete(epoch), Vec::new()).await
    }

    fn take_batch(&self) -> Vec<Write> {
        let mut queue = self.queue.lock();
        let count = queue.writes.len().min(BATCH);
        queue.writes.drain(..count).collect()
    }

    async fn write(&self, step: Step<'_>, batch: Vec<Write>) -> Result<(), Down> {
        let mut call = self.script.prepare_invoke();
        call.key(self.hash_of(self.leases.own()));
        for other in self.leases.others_alive() {
            call.key(self.hash_of(other));
        }
        call.arg(self.sequence.fetch_add(1, Ordering::Relaxed) + 1).arg(i64::from(step == Step::Begin));
        call.arg(if let Step::Complete(epoch) = step { epoch } else { "" }).arg(milliseconds(HASH_LIFE));
        for Write { user, bound, .. } in &batch {
            let (count, max) = match bound {
                Some((count, max)) => (number(*count), number(*max)),
                None => (self.slots.count(*user).map_or(-1, number), -1),
            };
            call.arg(user.to_string()).arg(count).arg(max);
        }

        let written: Vec<i64> = self.redis.script("presence_write", &call).await?;
        if written.is_empty() {
            return Err(Down);
        }
        for (write, fits) in batch.into_iter().zip(written.into_iter().skip(1)) {
            let Some(done) = write.done else { continue };
            // A connection that waited too long was admitted without this answer: it counts.
            if done.send(fits == 1).is_err() && fits != 1 {
                self.queue_write(Write::count_of(write.user));
            }
        }
        Ok(())
    }

    fn hash_of(&self, id: ReplicaId) -> String {
        self.redis.key(&format!("online:{id}"), TAG)
    }

    /// Queues a write. While the replica is not synced, only one that is waited for is kept: the
    /// complete hash includes the others.
    fn queue_write(&self, write: Write) {
        let mut queue = self.queue.lock();
        if queue.synced_in.is_some() || write.done.is_some() {
            queue.writes.push_back(write);
            drop(queue);
            self.queued.notify_one();
        }
    }

    /// Queues a write and waits for it. `None` if Redis does not answer in time.
    async fn write_and_wait(&self, user: UserId, bound: Option<(usize, usize)>) -> Option<bool> {
        if self.redis.is_resting() {
            return None;
        }
        let (done, written) = oneshot::channel();
        self.queue_write(Write { user, bound, done: Some(done) });
        tokio::time::timeout(PRESENCE_WAIT_MAX, written).await.ok()?.ok()
    }

    /// Reads the leases and the hashes in one round trip, and once more if a replica joined meanwhile.
    async fn read(&self, users: &[UserId]) -> Result<Found, Down> {
        let fields: Vec<String> = users.iter().map(ToString::to_string).collect();
        let mut asked = self.leases.listed();
        loop {
            // This replica knows its own users better than its hash does.
            asked.retain(|id| *id != self.leases.own());
            let mut pipeline = Pipeline::with_capacity(asked.len() + 1);
            pipeline.add_command(self.leases.list_command());
            for id in &asked {
                let mut get = cmd("HMGET");
                get.arg(self.hash_of(*id)).arg("epoch").arg(&fields);
                pipeline.add_command(get);
            }

            let answers: Vec<Vec<Option<String>>> = self.redis.pipeline("presence_read", &pipeline).await?;
            let (entries, hashes) = answers.split_first().ok_or(Down)?;
            let listed = Listed::of(entries);
            if listed.replicas.iter().all(|id| *id == self.leases.own() || asked.contains(id)) {
                let hashes = asked.iter().zip(hashes).filter(|(id, _)| listed.replicas.contains(id));
                let hashes: Vec<_> = hashes.map(|(_, hash)| hash.as_slice()).collect();
                return Ok(self.found(users, listed.epoch, &hashes));
            }
            asked = listed.replicas;
        }
    }

    /// Joins this replica's users with the hashes of the other listed replicas.
    fn found(&self, users: &[UserId], epoch: Option<String>, hashes: &[&[Option<String>]]) -> Found {
        let settled = epoch.as_ref().is_some_and(|epoch| self.leases.is_settled(epoch));
        let synced = settled && hashes.iter().all(|hash| hash.first() == Some(&epoch));

        let elsewhere = |index: usize| hashes.iter().any(|hash| matches!(hash.get(index + 1), Some(Some(_))));
        let online = users.iter().enumerate();
        let online = online.map(|(index, user)| self.slots.is_online(*user) || elsewhere(index)).collect();
        Found { online, synced }
    }
}

impl Write {
    /// Writes the number of connections that the user has by then.
    fn count_of(user: UserId) -> Self {
        Self { user, bound: None, done: None }
    }
}

/// A number as scripts take it.
fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Presence for RedisPresence {
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>> {
        Box::pin(async move {
            let count = self.slots.claim(user, max)?;
            match self.write_and_wait(user, Some((count, max))).await {
                Some(true) => {}
                Some(false) => {
                    self.slots.refuse(user);
                    self.queue_write(Write::count_of(user));
                    return Err(TooMany);
                }
                None => {
                    metrics::presence_unsynced_connection();
                    self.queue_write(Write::count_of(user));
                }
            }
            Ok(self.slots.confirm(user))
        })
    }

    fn leave(&self, user: UserId) -> bool {
        let last = self.slots.release(user);
        self.queue_write(Write::count_of(user));
        last
    }

    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>> {
        Box::pin(async move {
            let gone = self.slots.withdraw(users);
            gone.iter().for_each(|user| self.queue_write(Write::count_of(*user)));
            if let Some(last) = gone.last() {
                let _ = self.write_and_wait(*last, None).await;
            }
            gone
        })
    }

    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            let deadline = Instant::now() + PRESENCE_SYNC_MAX;
            loop {
                match self.read(users).await {
                    Ok(found) if found.synced || found.online.iter().all(|online| *online) => return Ok(found.online),
                    Ok(_) if Instant::now() < deadline => tokio::time::sleep(READ_RETRY).await,
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
