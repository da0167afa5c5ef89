//! A memory of which token stands for whom, in front of the store.

use std::time::{Duration, Instant};

use super::BoxFuture;
use crate::model::session::Caller;
use crate::model::token::TokenHash;

/// Remembers resolved tokens, for seconds.
///
/// **No stale refill**: who misses takes a ticket before asking the store; if the token was
/// forgotten meanwhile, what was read may be older than that, and is not remembered. **Down**: a
/// miss is always a right answer.
pub trait SessionCache: Send + Sync {
    /// Who the token stands for, or a ticket to say so later.
    fn get(&self, token: TokenHash) -> BoxFuture<'_, Result<Caller, CacheTicket>>;
    /// Remembers what the store said, unless the ticket is void.
    fn put(&self, token: TokenHash, caller: Caller, ticket: CacheTicket) -> BoxFuture<'_, ()>;
    /// Forgets these tokens for good: their session ended or has another one.
    fn forget<'a>(&'a self, tokens: &'a [TokenHash]) -> BoxFuture<'a, ()>;
}

/// The state of the cache when a look-up missed.
#[derive(Clone, Copy, Debug)]
pub struct CacheTicket {
    taken: Instant,
    /// How often the cache had forgotten something, where that is counted.
    pub(super) forgets: u64,
}

impl CacheTicket {
    /// A ticket from now.
    pub fn at(forgets: u64) -> Self {
        Self { taken: Instant::now(), forgets }
    }

    /// How long ago it was taken.
    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }
}
