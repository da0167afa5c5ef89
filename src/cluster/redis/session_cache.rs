//! Resolved tokens, cached in Redis. While Redis is unreachable, each replica caches them in its
//! own memory for a shorter time.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::redis::{Cmd, cmd};
use moka::sync::Cache;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::link::{Down, Redis};
use super::seal::ClusterKey;
use crate::cluster::{BoxFuture, CacheTicket, SessionCache};
use crate::metrics;
use crate::model::faults::{self, Mutant, mutant};
use crate::model::limits::{
    SESSION_CACHE_MAX, SESSION_LOCAL_LIFE, SESSION_REMOVE_RETRY, SESSION_SHARED_LIFE,
};
use crate::model::session::Caller;
use crate::model::token::TokenHash;
use crate::model::{Clock, Timestamp};
use crate::tasks::Tasks;

/// How long the tombstone of a forgotten token is kept: longer than [`TICKET_LIFE`], so that no
/// look-up that began before can put the token back.
const TOMBSTONE: Duration = Duration::from_mins(1);
/// How long a look-up in the database may take; a later result is too old to be cached.
const TICKET_LIFE: Duration = Duration::from_secs(10);

/// The sealed entry of a token. It contains the time, since Redis enforces a lifetime only on its
/// own copy. Without the time, anyone with write access to Redis could put back a copy of an entry
/// whose session has ended.
#[derive(Serialize, Deserialize)]
struct Entry {
    sealed_at: Timestamp,
    #[serde(flatten)]
    caller: Caller,
}

/// Resolved tokens in Redis. An entry is sealed under its token's hash and with its time, so that
/// Redis can't give a token to another user. An entry older than [`SESSION_SHARED_LIFE`] is
/// refused, even if Redis still has it. A forgotten token leaves a tombstone, which an older answer
/// of the database can't overwrite.
///
/// **Without Redis** each replica caches a token in its own memory for [`SESSION_LOCAL_LIFE`], and
/// asks the database after that. A failed deletion is retried until the entry would have expired.
pub struct RedisSessionCache {
    redis: Arc<Redis>,
    key: ClusterKey,
    clock: Clock,
    local: Cache<TokenHash, Caller>,
    tasks: Tasks,
}

impl RedisSessionCache {
    /// A cache in this Redis.
    pub fn new(redis: Arc<Redis>, key: ClusterKey, clock: Clock, tasks: Tasks) -> Self {
        let local = Cache::builder()
            .max_capacity(SESSION_CACHE_MAX)
            .time_to_live(SESSION_LOCAL_LIFE)
            .build();
        Self { redis, key, clock, local, tasks }
    }

    fn name(&self, token: TokenHash) -> String {
        use std::fmt::Write;
        let hex = token.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.redis.key("token", &hex)
    }

    async fn read(&self, token: TokenHash) -> Result<Option<Caller>, Down> {
        let name = self.name(token);
        let sealed: Option<Vec<u8>> =
            self.redis.command("session_get", Cmd::new().arg("GET").arg(&name)).await?;
        let open = |sealed: Vec<u8>| serde_json::from_slice(self.key.open(&name, &sealed)?).ok();
        let entry: Option<Entry> = sealed.and_then(open);

        if entry.as_ref().is_some_and(|entry| !self.is_fresh(entry.sealed_at)) {
            metrics::session_entry_stale();
            return Ok(None);
        }

        Ok(entry.map(|entry| entry.caller))
    }

    /// Whether an entry sealed at this time is valid. An entry from the future is refused like an
    /// old one: a clock was wrong when it was sealed, and a copy could be replayed for longer than
    /// its life.
    fn is_fresh(&self, sealed_at: Timestamp) -> bool {
        self.clock.now().distance(sealed_at) <= life()
    }
}

impl SessionCache for RedisSessionCache {
    fn get(&self, token: TokenHash) -> BoxFuture<'_, Result<Caller, CacheTicket>> {
        Box::pin(async move {
            let ticket = CacheTicket::at(0);
            let found = self.read(token).await.unwrap_or_else(|Down| self.local.get(&token));
            found.ok_or(ticket)
        })
    }

    fn put(&self, token: TokenHash, caller: Caller, ticket: CacheTicket) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if ticket.age() > TICKET_LIFE {
                return;
            }

            let name = self.name(token);
            let entry = Entry { sealed_at: self.clock.now(), caller };
            let sealed = self.key.seal(&name, &serde_json::to_vec(&entry).unwrap_or_default());
            // Spread the expiry, so that entries made together don't all expire together.
            let life = life().mul_f64(rand::rng().random_range(0.75..=1.0));

            // `NX` keeps a tombstone that was written since the ticket was taken.
            let mut set = cmd("SET");
            set.arg(&name)
                .arg(sealed)
                .arg("NX")
                .arg("PX")
                .arg(u64::try_from(life.as_millis()).unwrap_or(0));
            let stored: Result<Option<String>, Down> =
                self.redis.command("session_put", &set).await;
            if stored.is_err() {
                self.local.insert(token, caller);
            }
        })
    }

    fn forget<'a>(&'a self, tokens: &'a [TokenHash]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for token in tokens {
                self.local.invalidate(token);
            }
            mutant!(StaleSessions => return);

            let tombstone = |token: &TokenHash| {
                let mut set = cmd("SET");
                set.arg(self.name(*token)).arg("").arg("EX").arg(TOMBSTONE.as_secs());
                set
            };
            let tombstones: Vec<Cmd> = tokens.iter().map(tombstone).collect();
            if tombstones.is_empty() || self.redis.all("session_forget", &tombstones).await.is_ok()
            {
                return;
            }

            let redis = self.redis.clone();
            self.tasks.spawn(async move {
                // After the life of an entry, Redis has no valid entry left to overwrite.
                for _ in 0..SESSION_SHARED_LIFE.as_millis() / SESSION_REMOVE_RETRY.as_millis() {
                    tokio::time::sleep(SESSION_REMOVE_RETRY).await;
                    if redis.all("session_forget", &tombstones).await.is_ok() {
                        return;
                    }
                }
            });
        })
    }
}

/// How long an entry is valid.
fn life() -> Duration {
    faults::choose(Mutant::StaleSessions, SESSION_SHARED_LIFE, SESSION_SHARED_LIFE * 100)
}
