//! The rules: who may do what, and what follows from it. Each call goes the same way: check, ask the rate limiter, one
//! unit of work in the store, publish. No HTTP, no SQL, no Redis here.

mod accounts;
mod appender;
mod chats;
mod hasher;
mod invites;
mod jobs;
mod lanes;
mod messages;
mod removals;
mod sessions;

pub use accounts::{AccountPatch, MadeUser, Registration};
pub use appender::PendingSend;
pub use chats::{ChangesPage, ChatRequest};
pub use hasher::Hasher;
pub use messages::{HistoryPage, Outgoing};
pub use sessions::{Grant, Login, Origin};

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use tokio::sync::{Notify, Semaphore};

use crate::cluster::{Bus, RateLimiter, SessionCache};
use crate::metrics;
use crate::model::clock::JumpWatch;
use crate::model::limits::{self, Rate};
use crate::model::{Clock, Error, Limits, Result};
use crate::store::Store;
use crate::tasks::Tasks;
use appender::Appender;

/// What the service is made of.
pub struct Parts {
    /// The durable truth.
    pub store: Store,
    /// To every hub.
    pub bus: Arc<dyn Bus>,
    /// Resolved tokens.
    pub session_cache: Arc<dyn SessionCache>,
    /// Rate limits.
    pub limiter: Arc<dyn RateLimiter>,
    /// The time.
    pub clock: Clock,
    /// The bounds that the operator chose.
    pub limits: Limits,
    /// Hashes passwords.
    pub hasher: Hasher,
    /// Tasks that outlive a request and end before the process does.
    pub tasks: Tasks,
}

/// The rules, over one store and one cluster.
pub struct Service {
    store: Store,
    bus: Arc<dyn Bus>,
    session_cache: Arc<dyn SessionCache>,
    limiter: Arc<dyn RateLimiter>,
    clock: Clock,
    limits: Limits,
    hasher: Hasher,
    appender: Appender,
    /// Turns to ask the store about tokens.
    resolves: Semaphore,
    /// Turns to take a removed account out of a chat.
    departures: Semaphore,
    /// Whether the jobs may believe the clock.
    jumps: Mutex<JumpWatch>,
    /// Asks for a round of the jobs before the clock does.
    jobs_due: Notify,
    tasks: Tasks,
}

impl Service {
    /// Starts the service: its appenders run until `stop`.
    pub fn start(parts: Parts) -> Arc<Self> {
        let Parts { store, bus, session_cache, limiter, clock, limits, hasher, tasks } = parts;
        let appender = Appender::start(&store, &bus, &clock, &tasks);
        let resolves = Semaphore::new(limits::RESOLVES_AT_ONCE_MAX);
        let departures = Semaphore::new(limits::DEPARTURES_AT_ONCE_MAX);
        Arc::new(Self {
            store,
            bus,
            session_cache,
            limiter,
            clock,
            limits,
            hasher,
            appender,
            resolves,
            departures,
            jumps: Mutex::default(),
            jobs_due: Notify::new(),
            tasks,
        })
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The store, for reads that need no rule.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where long-lived work is tracked.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Counts one of what `rate` limits under `key`.
    async fn limit(&self, rate: Rate, key: &str) -> Result<()> {
        if !self.limits.rate_limits {
            return Ok(());
        }
        let taken = self.limiter.take(rate, key, self.clock.now()).await;
        if taken.is_err() {
            metrics::rate_limited(rate.name);
        }
        taken
    }

    /// `min(asked, configured)`.
    ///
    /// # Errors
    /// `invalid_fields` naming `field` for less than 1.
    fn page(&self, field: &str, asked: Option<i64>) -> Result<i64> {
        match asked {
            Some(asked) if asked < 1 => Err(Error::field(field, "must be at least 1")),
            Some(asked) => Ok(asked.min(self.limits.page_max)),
            None => Ok(self.limits.page_max.min(limits::PAGE)),
        }
    }
}

/// The operating system's random source, for everything secret.
fn secrets() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
