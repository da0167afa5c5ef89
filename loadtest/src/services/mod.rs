//! A Postgres and a Redis of one's own, on free ports, with temporary data: for a deployment that
//! the program measures, and for tests that break them. Each ends, and its data goes, with its
//! value.

mod postgres;
pub mod process;
mod redis;

pub use postgres::Postgres;
pub use redis::Redis;

/// Ports that are tried: another program may take one between the look and the start.
const PORTS_MAX: usize = 5;

/// What the Postgres and the Redis of this machine say of themselves, one line each; nothing of one
/// that is not here.
pub async fn versions() -> Vec<String> {
    postgres::version().await.into_iter().chain(redis::version().await).collect()
}
