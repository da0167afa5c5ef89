//! What replicas share. Each trait states its contract; [`memory`] fulfils it for one replica.

pub mod bus;
pub mod limiter;
pub mod memory;
pub mod presence;
pub mod redis;
pub mod session_cache;

pub use bus::{Arrival, Bus, BusInbox};
pub use limiter::{Permit, RateLimiter};
pub use presence::{Entered, Presence, TooMany};
pub use session_cache::{CacheTicket, SessionCache};

use std::future::Future;
use std::pin::Pin;

/// A boxed future, so that the traits can be objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
