//! The cache of resolved tokens in front of the store.

use std::time::{Duration, Instant};

use super::BoxFuture;
use crate::model::session::Caller;
use crate::model::token::TokenHash;

/// Caches the caller of each token for seconds.
///
/// **No stale refill**: a look-up that misses returns a ticket before the store is read. If
/// [`forget`](Self::forget) removes the token meanwhile, the answer of the store may be older than
/// that, so [`put`](Self::put) does not cache it. **Down**: a miss is always correct, so a cache
/// that cannot answer misses.
pub trait SessionCache: Send + Sync {
    /// The caller of the token; on a miss, a ticket for [`put`](Self::put).
    fn get(&self, token: TokenHash) -> BoxFuture<'_, Result<Caller, CacheTicket>>;
    /// Caches the caller that the store returned, unless the token may have been forgotten since
    /// the ticket was taken.
    fn put(&self, token: TokenHash, caller: Caller, ticket: CacheTicket) -> BoxFuture<'_, ()>;
    /// Removes these tokens: their session ended or has another token. A look-up that began before
    /// cannot put them back.
    fn forget<'a>(&'a self, tokens: &'a [TokenHash]) -> BoxFuture<'a, ()>;
}

/// The state of the cache when a look-up missed.
#[derive(Clone, Copy, Debug)]
pub struct CacheTicket {
    taken: Instant,
    /// Calls of [`SessionCache::forget`] before the look-up, if the cache counts them.
    pub(super) forgets: u64,
}

impl CacheTicket {
    /// A ticket taken now.
    pub fn at(forgets: u64) -> Self {
        Self { taken: Instant::now(), forgets }
    }

    /// The time since the ticket was taken.
    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }
}
