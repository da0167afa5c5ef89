//! The store without a server: order, exact limits under concurrency, and query plans.

mod append;
pub mod bench;
mod changes;
mod cleanup;
mod exactness;
pub mod explain;
mod statements;
mod workers;
