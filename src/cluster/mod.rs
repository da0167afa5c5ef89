//! The state that replicas share. Each trait states its contract. [`memory`] implements the traits
//! for a single replica, [`redis`] for several.

pub mod bus;
mod future;
pub mod limiter;
pub mod memory;
pub mod presence;
pub mod redis;
pub mod session_cache;

pub use bus::{Arrival, Bus, BusInbox};
pub use future::BoxFuture;
pub use limiter::{Permit, RateLimiter};
pub use presence::{Entered, Presence, TooMany};
pub use session_cache::{CacheTicket, SessionCache};
