//! A temporary Postgres and a temporary Redis on free ports, for a deployment that the program
//! measures, and for tests that break them. Dropping a value ends its server and deletes its data.

mod postgres;
pub mod process;
mod redis;

pub use postgres::Postgres;
pub use redis::Redis;

/// Maximum number of ports to try: another program may take a free port before the server does.
const PORTS_MAX: usize = 5;

/// The versions of this machine's Postgres and Redis, one line each. A missing server has no line.
pub async fn versions() -> Vec<String> {
    postgres::version().await.into_iter().chain(redis::version().await).collect()
}
