//! The store by itself: order, exactness under concurrency, and plans that fit the indexes.

mod append;
pub mod bench;
mod changes;
mod exactness;
mod explain;
mod statements;
mod sweep;
