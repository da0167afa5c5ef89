//! A memory of which token stands for whom, in front of the store.

use super::BoxFuture;
use crate::model::SessionId;
use crate::model::session::Caller;
use crate::model::token::TokenHash;

/// Remembers resolved tokens for at most [`crate::model::limits::SESSION_CACHE_LIFE`].
///
/// **No stale refill**: who misses takes a ticket before asking the store; if a session was forgotten meanwhile, what
/// was read may be older than that, and the ticket is void. **Down**: a miss is always a right answer.
pub trait SessionCache: Send + Sync {
    /// Who the token stands for, or a ticket to say so later.
    fn get(&self, token: TokenHash) -> BoxFuture<'_, Result<Caller, CacheTicket>>;
    /// Remembers what the store said, unless the ticket is void.
    fn put(&self, token: TokenHash, caller: Caller, ticket: CacheTicket) -> BoxFuture<'_, ()>;
    /// Forgets these sessions' tokens: they ended or rotated.
    fn forget<'a>(&'a self, sessions: &'a [SessionId]) -> BoxFuture<'a, ()>;
}

/// The state of the cache when a look-up missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheTicket(pub u64);
