//! The rules: what each caller may do, and which events follow. No HTTP, SQL or Redis here.
//!
//! Every call takes the same path: check the input, count it against a rate limit, run one unit of
//! work in the store, publish the result. There is one service for each domain. A service holds
//! only the parts that it uses; only [`Services::start`] handles all parts.
//!
//! | service | domain | uses, besides the store |
//! |---|---|---|
//! | [`Accounts`] | registration, the caller's account | hasher, passwords, sessions |
//! | [`Sessions`] | login, tokens, refresh, logout | session cache, bus, hasher, guesses |
//! | [`Removals`] | ending accounts, leaving their chats | passwords, sessions, publisher |
//! | [`Invites`] | invites | rate limits |
//! | [`Directory`] | search for users | |
//! | [`Chats`], [`Members`] | chats, their changes and their members | publisher, rate limits |
//! | [`Messages`] | sending, history, edits, read markers, typing | appender, publisher |
//! | [`Syncs`] | the changes that a client missed | budgets |
//! | [`Budgets`] | the load that one user may put on a replica | rate limits |
//! | [`Health`] | whether the database answers | |
//!
//! The parts behind them: `rates` counts events over all replicas, `guesses` counts failed logins,
//! `passwords` confirms the caller's password, `hasher` bounds the hashing, `publisher` publishes
//! events, `permits` bounds the concurrent work of a user, and `admission` bounds clients that have
//! not authenticated. A send goes through `appender`, which commits batches by `committer`, and
//! through `lanes` if another transaction locks its chat.

mod access;
mod accounts;
mod admission;
mod appender;
mod budget;
mod chats;
mod committer;
mod directory;
mod guesses;
mod hasher;
mod health;
mod invites;
mod lanes;
mod members;
mod messages;
#[cfg(feature = "faults")]
mod mutants;
mod page;
mod passwords;
mod permits;
mod publisher;
mod random;
mod rates;
mod removals;
mod sessions;
mod sync;

pub use accounts::{Accounts, MadeUser};
pub use budget::Budgets;
pub use chats::Chats;
pub use directory::Directory;
pub use health::Health;
pub use invites::{Invite, Invites};
pub use members::Members;
pub use messages::Messages;
pub use removals::Removals;
pub use sessions::{Login, Sessions};
pub use sync::Syncs;

pub(crate) use accounts::{AccountPatch, Registration};
pub(crate) use admission::{Admission, RequestGuard, SharedAddressSlot};
pub(crate) use chats::ChatRequest;
pub(crate) use hasher::Hasher;
pub(crate) use messages::{HistoryPage, Outgoing};
pub(crate) use sessions::Grant;
pub(crate) use sync::{Changes, ChatToSync, FollowedChats, NextChanges};

use std::sync::Arc;

use tokio::sync::{Notify, Semaphore};

use crate::cluster::{Bus, RateLimiter, SessionCache};
use crate::model::limits::{DEPARTURES_AT_ONCE_MAX, RESOLVES_AT_ONCE_MAX, SYNCS_AT_ONCE_MAX};
use crate::model::{Clock, Limits};
use crate::store::Store;
use crate::tasks::Tasks;
use appender::Appender;
use guesses::Guesses;
use passwords::Passwords;
use publisher::Publisher;
use rates::RateLimits;

/// The parts from which [`Services::start`] composes the services.
pub struct Parts {
    /// All durable state.
    pub store: Store,
    /// Carries events to the hubs of all replicas.
    pub bus: Arc<dyn Bus>,
    /// Caches the callers of access tokens.
    pub session_cache: Arc<dyn SessionCache>,
    /// Counts rate limits over all replicas.
    pub limiter: Arc<dyn RateLimiter>,
    /// The clock of this replica, which follows the database's clock.
    pub clock: Clock,
    /// The bounds that the operator configured.
    pub limits: Limits,
    /// Hashes passwords, a bounded number at a time.
    pub hasher: Hasher,
    /// Tracks tasks that may outlive their request; the process waits for them when it stops.
    pub tasks: Tasks,
}

/// All services over one store and one cluster.
pub struct Services {
    /// Registration and the caller's account.
    pub accounts: Accounts,
    /// Logins and tokens.
    pub sessions: Arc<Sessions>,
    /// Removal of accounts.
    pub removals: Arc<Removals>,
    /// Creating, listing and revoking invites.
    pub invites: Invites,
    /// Search for users.
    pub directory: Directory,
    /// Chats and their changes.
    pub chats: Chats,
    /// Members of chats and their roles.
    pub members: Members,
    /// Messages, read markers and typing.
    pub messages: Messages,
    /// The changes that clients missed.
    pub sync: Syncs,
    /// Starts a cleanup at once, since a chat was removed.
    pub cleanup_due: Arc<Notify>,
    /// The load that one user may put on this replica.
    pub budgets: Arc<Budgets>,
    /// Whether the database answers.
    pub health: Arc<Health>,
}

impl Services {
    /// Composes the services and starts the appenders. The appenders run until `tasks` stop.
    pub fn start(parts: Parts) -> Arc<Self> {
        let Parts { store, bus, session_cache, limiter, clock, limits, hasher, tasks } = parts;

        let cleanup_due = Arc::new(Notify::new());
        let publisher = Publisher { bus: bus.clone(), cleanup_due: cleanup_due.clone() };
        let rates = RateLimits { limiter, clock: clock.clone(), enabled: limits.rate_limits };
        let budgets = Arc::new(Budgets::new(rates.clone()));
        let guesses = Guesses { store: store.clone(), rates: rates.clone(), clock: clock.clone() };
        let passwords =
            Passwords { store: store.clone(), hasher: hasher.clone(), guesses: guesses.clone() };
        let appender = Appender::start(&store, &bus, &clock, &tasks);

        let sessions = Arc::new(Sessions {
            store: store.clone(),
            bus,
            cache: session_cache,
            hasher: hasher.clone(),
            guesses,
            rates: rates.clone(),
            budgets: budgets.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
            resolves: Semaphore::new(RESOLVES_AT_ONCE_MAX),
            per_user_max: limits.sessions_per_user_max,
            token_life: limits.token_life,
            refresh_life: limits.refresh_life,
        });
        let accounts = Accounts {
            store: store.clone(),
            hasher,
            passwords: passwords.clone(),
            sessions: sessions.clone(),
            rates: rates.clone(),
            clock: clock.clone(),
            sessions_max: limits.sessions_per_user_max,
        };
        let removals = Arc::new(Removals {
            store: store.clone(),
            passwords,
            sessions: sessions.clone(),
            publisher: publisher.clone(),
            clock: clock.clone(),
            tasks,
            departures: Semaphore::new(DEPARTURES_AT_ONCE_MAX),
        });

        let shared = Shared { store, rates, publisher, budgets, clock, limits };
        Arc::new(Self {
            accounts,
            sessions,
            removals,
            invites: shared.invites(),
            directory: shared.directory(),
            chats: shared.chats(),
            members: shared.members(),
            messages: shared.messages(appender),
            sync: shared.sync(),
            cleanup_due,
            budgets: shared.budgets,
            health: Health::good(),
        })
    }
}

/// The parts that most services share.
struct Shared {
    store: Store,
    rates: RateLimits,
    publisher: Publisher,
    budgets: Arc<Budgets>,
    clock: Clock,
    limits: Limits,
}

impl Shared {
    fn invites(&self) -> Invites {
        Invites {
            store: self.store.clone(),
            rates: self.rates.clone(),
            budgets: self.budgets.clone(),
            clock: self.clock.clone(),
            per_user_max: self.limits.invites_per_user_max,
        }
    }

    fn directory(&self) -> Directory {
        Directory { store: self.store.clone(), page_max: self.limits.page_max }
    }

    fn chats(&self) -> Chats {
        Chats {
            store: self.store.clone(),
            rates: self.rates.clone(),
            publisher: self.publisher.clone(),
            clock: self.clock.clone(),
            per_user_max: self.limits.chats_per_user_max,
            members_max: self.limits.group_members_max,
            page_max: self.limits.page_max,
        }
    }

    fn members(&self) -> Members {
        Members {
            store: self.store.clone(),
            rates: self.rates.clone(),
            publisher: self.publisher.clone(),
            clock: self.clock.clone(),
            chats_max: self.limits.chats_per_user_max,
            per_group_max: self.limits.group_members_max,
            page_max: self.limits.page_max,
        }
    }

    fn messages(&self, appender: Appender) -> Messages {
        Messages {
            store: self.store.clone(),
            appender,
            rates: self.rates.clone(),
            budgets: self.budgets.clone(),
            publisher: self.publisher.clone(),
            clock: self.clock.clone(),
            page_max: self.limits.page_max,
        }
    }

    fn sync(&self) -> Syncs {
        Syncs {
            store: self.store.clone(),
            budgets: self.budgets.clone(),
            permits: Semaphore::new(SYNCS_AT_ONCE_MAX),
        }
    }
}
