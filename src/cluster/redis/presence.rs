//! Presence in Redis: for each user a hash of how many places they hold on which replica.
//!
//! A replica writes absolute numbers, from its own truth, in order; so a write that comes twice does no harm, and after
//! Redis forgot everything each replica says it anew. What a replica wrote is believed as long as its lease; that
//! somebody is nowhere, once every replica has said who is with it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::{Script, ScriptInvocation};
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::{LEASE, Leases, Remembered, Renewal};
use super::link::{Down, Redis};
use crate::cluster::presence::Places;
use crate::cluster::{BoxFuture, Entered, Presence, TooMany};
use crate::metrics;
use crate::model::limits::PRESENCE_WAIT_MAX;
use crate::model::{Error, Result, UserId};

/// How long Redis keeps a user's hash that nobody writes: what a killed replica left goes by itself.
const ENTRY_LIFE: Duration = Duration::from_mins(2);
/// How often a replica says anew who is here.
const REFRESH_EVERY: Duration = Duration::from_secs(40);
/// Pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long after this replica noticed that Redis forgot everything the absence of an entry means nothing, whoever is
/// known to be missing: those who started a moment ago are not.
const GRACE: Duration = Duration::from_secs(2);
/// How long whoever asks waits for replicas that have not said who is with them.
const WHOLE_WAIT_MAX: Duration = Duration::from_secs(3);
/// Pause before they are looked for again.
const WHOLE_RETRY: Duration = Duration::from_millis(100);
/// Writes in one round trip, and users asked for in one.
const BATCH: usize = 256;
/// Questions on their way at once where each user lives on a node of their own.
const QUESTIONS_AT_ONCE: usize = 16;

/// Writes, for each of the KEYS, how many places a user holds on one replica (below 0: none, and not here), if they hold
/// at most a number (below 0: any) with those on other replicas. Answers 1 for each written. ARGV: the replica, the life of
/// an entry in seconds, how many other replicas are alive, these, and two numbers a key. Fields of replicas that are no
/// more are dropped only where many gathered: one that just started is unknown to the others for a moment.
const WRITE: &str = "
    local own, life, alive = ARGV[1], ARGV[2], tonumber(ARGV[3])
    local others, is_alive, written = {}, {[own] = true}, {}
    for index = 1, alive do
        others[index] = ARGV[3 + index]
        is_alive[others[index]] = true
    end
    for index, key in ipairs(KEYS) do
        local places, max = tonumber(ARGV[2 + alive + 2 * index]), tonumber(ARGV[3 + alive + 2 * index])
        local all = places
        if max >= 0 and alive > 0 then
            for _, held in ipairs(redis.call('HMGET', key, unpack(others))) do
                all = all + (tonumber(held or 0) or 0)
            end
        end
        written[index] = 1
        if places < 0 then
            redis.call('HDEL', key, own)
        elseif max >= 0 and all > max then
            written[index] = 0
        else
            redis.call('HSET', key, own, places)
            redis.call('EXPIRE', key, life)
            if redis.call('HLEN', key) > 32 + alive then
                for _, id in ipairs(redis.call('HKEYS', key)) do
                    if not is_alive[id] then redis.call('HDEL', key, id) end
                end
            end
        end
    end
    return written";

/// Whether each of the KEYS has a field of one of the replicas in ARGV.
const LOOK: &str = "
    local online = {}
    for index, key in ipairs(KEYS) do
        online[index] = 0
        for _, held in ipairs(redis.call('HMGET', key, unpack(ARGV))) do
            if held then online[index] = 1 end
        end
    end
    return online";

/// Presence over all replicas that share a Redis.
pub struct RedisPresence {
    redis: Arc<Redis>,
    leases: Arc<Leases>,
    write: Script,
    look: Script,
    places: Places,
    queue: Mutex<Queue>,
    queued: Notify,
    /// When what Redis does not know begins to mean something.
    sees_from: Mutex<Instant>,
}

/// What a look at Redis found.
struct Seen {
    online: Vec<bool>,
    /// Whether those who were not found are not there.
    is_whole: bool,
}

/// What is to be written, in order.
#[derive(Default)]
struct Queue {
    steps: VecDeque<Step>,
    /// Users whose number is said by a step that waits, with nothing of theirs behind it: saying it twice is of no use.
    said: HashSet<UserId>,
}

enum Step {
    /// Writes how many places a user holds by then.
    Say(UserId),
    /// Asks for one more place. Answers whether it is to be had; not at all if Redis does not.
    Ask { user: UserId, places: usize, max: usize, answer: oneshot::Sender<bool> },
    /// Tells that everything before it is written; not at all if it isn't.
    Reach(oneshot::Sender<bool>),
    /// Tells the others that everything before it is written in this memory of Redis.
    Whole(String),
}

impl Step {
    fn user(&self) -> Option<UserId> {
        match self {
            Self::Say(user) | Self::Ask { user, .. } => Some(*user),
            Self::Reach(_) | Self::Whole(_) => None,
        }
    }
}

/// A number as scripts take it.
fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl RedisPresence {
    /// Presence in this Redis, of the replicas that have a lease. To be [`run`](Self::run).
    pub fn new(redis: Arc<Redis>, leases: Arc<Leases>) -> Self {
        Self {
            redis,
            leases,
            write: Script::new(WRITE),
            look: Script::new(LOOK),
            places: Places::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
            sees_from: Mutex::new(Instant::now()),
        }
    }

    /// Takes note of a renewal of this replica's lease.
    pub fn renewed(&self, renewal: Renewal) {
        match renewal.remembered {
            Remembered::Still => {}
            Remembered::NotYet => self.say_everything(),
            Remembered::NoMore => self.forgotten(),
        }
    }

    /// Writes what is queued, and everything now and then, until `stop`; then what is left.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = refresh.tick() => self.say(self.places.users()),
                () = self.queued.notified() => {}
            }
            while !self.queue.lock().steps.is_empty() {
                if self.write_batch().await.is_err() {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
        while !self.queue.lock().steps.is_empty() && self.write_batch().await.is_ok() {}
    }

    /// Redis lost what it knew: says everything anew, and believes no absence before others had time for the same.
    fn forgotten(&self) {
        *self.sees_from.lock() = Instant::now() + GRACE;
        self.say_everything();
    }

    /// Says who is here, and then that this is all.
    fn say_everything(&self) {
        let memory = self.leases.memory();
        self.say(self.places.users());
        if let Some(memory) = memory {
            self.say_whole(memory);
        }
    }

    fn say_whole(&self, memory: String) {
        self.queue.lock().steps.push_back(Step::Whole(memory));
        self.queued.notify_one();
    }

    /// Has it written how many places these users hold.
    fn say(&self, users: impl IntoIterator<Item = UserId>) {
        let mut queue = self.queue.lock();
        for user in users {
            if queue.said.insert(user) {
                queue.steps.push_back(Step::Say(user));
            }
        }
        drop(queue);
        self.queued.notify_one();
    }

    fn key(&self, user: UserId) -> String {
        self.redis.key("online", &user.to_string())
    }

    /// Users whose keys one script may name.
    fn together(&self) -> usize {
        if self.redis.is_cluster() { 1 } else { BATCH }
    }

    fn take_batch(&self) -> Vec<Step> {
        let mut queue = self.queue.lock();
        let count = queue.steps.len().min(BATCH);
        let batch: Vec<Step> = queue.steps.drain(..count).collect();
        for step in &batch {
            if let Step::Say(user) = step {
                queue.said.remove(user);
            }
        }
        batch
    }

    /// Writes the next steps. Of those that failed, the numbers are to be said again; whoever waits for an answer has none.
    async fn write_batch(&self) -> Result<(), Down> {
        let mut steps = self.take_batch().into_iter();
        loop {
            let some: Vec<Step> = steps.by_ref().take(self.together()).collect();
            if some.is_empty() {
                return Ok(());
            }
            match self.write(&some).await {
                Ok(written) => self.answer(some, written),
                Err(down) => {
                    let undone = some.iter().chain(steps.as_slice());
                    self.say(undone.clone().filter_map(Step::user));
                    for step in undone {
                        if let Step::Whole(memory) = step {
                            self.say_whole(memory.clone());
                        }
                    }
                    return Err(down);
                }
            }
        }
    }

    async fn write(&self, steps: &[Step]) -> Result<Vec<i64>, Down> {
        let own = self.leases.own();
        let others = self.leases.alive_now().await?;
        let others: Vec<String> = others.into_iter().filter(|id| *id != own).map(|id| id.to_string()).collect();
        let mut call = self.write.prepare_invoke();
        call.arg(own.to_string()).arg(ENTRY_LIFE.as_secs()).arg(others.len());
        for id in &others {
            call.arg(id);
        }
        let mut keys = 0;
        for step in steps {
            let (user, places, max) = match step {
                Step::Say(user) => (*user, self.places.of(*user).map_or(-1, number), -1),
                Step::Ask { user, places, max, .. } => (*user, number(*places), number(*max)),
                Step::Reach(_) | Step::Whole(_) => continue,
            };
            call.key(self.key(user)).arg(places).arg(max);
            keys += 1;
        }
        if keys == 0 { Ok(Vec::new()) } else { self.redis.script("presence_write", &call).await }
    }

    fn answer(&self, steps: Vec<Step>, written: Vec<i64>) {
        let mut written = written.into_iter().map(|it| it == 1);
        for step in steps {
            match step {
                Step::Say(_) => drop(written.next()),
                Step::Ask { user, answer, .. } => {
                    let granted = written.next().unwrap_or(true);
                    // Who waited too long went in without this answer.
                    if answer.send(granted).is_err() && !granted {
                        self.say([user]);
                    }
                }
                Step::Reach(reached) => drop(reached.send(true)),
                // If Redis forgot it since, the next renewal is in another memory.
                Step::Whole(memory) => self.leases.has_said(memory),
            }
        }
    }

    /// Queues a step that is answered, and waits for that. `None`: Redis does not say.
    async fn ask(&self, step: impl FnOnce(oneshot::Sender<bool>) -> Step) -> Option<bool> {
        if self.redis.is_resting() {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            let step = step(sender);
            if let Step::Ask { user, .. } = &step {
                // What is said of this user from now on must be written behind this step.
                queue.said.remove(user);
            }
            queue.steps.push_back(step);
        }
        self.queued.notify_one();
        tokio::time::timeout(PRESENCE_WAIT_MAX, answer).await.ok()?.ok()
    }

    /// Who is online by the entries in Redis. Fails if Redis lost what it knew.
    async fn look(&self, users: &[UserId]) -> Result<Seen, Down> {
        let own = self.leases.own();
        // Asked each time: who entered on a replica that just started is online as well.
        let mut first = self.leases.believed_now().await?;
        if !first.replicas.contains(&own) {
            first.replicas.push(own);
        }
        let believed: Vec<String> = first.replicas.iter().map(ToString::to_string).collect();
        let ask = |users: &[UserId]| {
            let mut call = self.look.prepare_invoke();
            for user in users {
                call.key(self.key(*user));
            }
            for id in &believed {
                call.arg(id);
            }
            self.answered(call)
        };
        let questions = stream::iter(users.chunks(self.together())).map(ask).buffered(QUESTIONS_AT_ONCE);
        let online: Vec<Vec<i64>> = questions.try_collect().await?;
        // Asked last: had Redis forgotten before it answered, this replica's lease would not be there.
        let last = self.leases.believed_now().await?;
        if !last.replicas.contains(&own) {
            self.forgotten();
            return Err(Down);
        }
        let online = users.iter().zip(online.into_iter().flatten());
        let online = online.map(|(user, online)| online == 1 || self.places.is_here(*user)).collect();
        Ok(Seen { online, is_whole: first.is_whole && last.is_whole })
    }

    async fn answered(&self, call: ScriptInvocation<'_>) -> Result<Vec<i64>, Down> {
        self.redis.script("presence_look", &call).await
    }
}

impl Presence for RedisPresence {
    fn enter(&self, user: UserId, max: usize) -> BoxFuture<'_, Result<Entered, TooMany>> {
        Box::pin(async move {
            let places = self.places.ask(user, max)?;
            match self.ask(|answer| Step::Ask { user, places, max, answer }).await {
                Some(true) => {}
                Some(false) => {
                    self.places.refuse(user);
                    self.say([user]);
                    return Err(TooMany);
                }
                None => {
                    metrics::presence_blind();
                    self.say([user]);
                }
            }
            Ok(self.places.confirm(user))
        })
    }

    fn leave(&self, user: UserId) -> bool {
        let last = self.places.give_back(user);
        self.say([user]);
        last
    }

    fn withdraw<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Vec<UserId>> {
        Box::pin(async move {
            let gone = self.places.withdraw(users);
            if !gone.is_empty() {
                self.say(gone.iter().copied());
                let _ = self.ask(Step::Reach).await;
            }
            gone
        })
    }

    fn online<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            let deadline = Instant::now() + WHOLE_WAIT_MAX;
            let mut failures = 0;
            // Twice at least: the first look may be the one that finds out that Redis forgot.
            while failures < 2 {
                let sees_from = *self.sees_from.lock();
                tokio::time::sleep_until(sees_from).await;
                match self.look(users).await {
                    Ok(seen) if seen.is_whole || seen.online.iter().all(|online| *online) => return Ok(seen.online),
                    Ok(_) if Instant::now() < deadline => tokio::time::sleep(WHOLE_RETRY).await,
                    Ok(_) => break,
                    Err(Down) => failures += 1,
                }
            }
            Err(Error::overloaded())
        })
    }

    fn dead_count_for(&self) -> Duration {
        LEASE
    }
}
