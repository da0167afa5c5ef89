//! Drives a Starling deployment over its real ports, remembers what it did and saw, and proves from
//! that record that nothing was lost, doubled, reordered or shown to the wrong user.
//!
//! | module | what it knows |
//! |---|---|
//! | [`wire`] | the protocol's JSON, as far as a client must read it; unknown fields are passed over |
//! | [`client`] | one HTTP request, one WebSocket; no memory |
//! | [`history`] | the record: operations, frames, memory samples; its dump and how to read it back |
//! | [`actor`] | a user whose every request is recorded |
//! | [`device`] | one session on one socket that survives reconnects; every frame is recorded |
//! | [`checker`] | a pure function from a record and the final log to what is wrong with them |
//! | [`workload`] | users and what they do, bounded and seeded |
//! | [`services`] | a Postgres and a Redis of one's own |
//!
//! It knows nothing of the server but its protocol. The program `starling-loadtest` is built around
//! it, in `tool`.

pub mod actor;
pub mod checker;
pub mod client;
pub mod device;
pub mod history;
pub mod services;
pub mod wire;
pub mod workload;
