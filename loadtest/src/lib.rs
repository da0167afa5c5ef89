//! Drives a Starling deployment over its public ports, records every request and every frame, and
//! checks from that record that no message was lost, duplicated, reordered or sent to the wrong
//! user.
//!
//! | module | contents |
//! |---|---|
//! | [`wire`] | the protocol's JSON as far as a client needs it; unknown fields are ignored |
//! | [`client`] | one HTTP request, one WebSocket; neither is recorded here |
//! | [`history`] | the record: operations, frames, memory samples; its dump file |
//! | [`actor`] | a user whose every request is recorded |
//! | [`device`] | a session on a socket that reconnects; every frame is recorded |
//! | [`checker`] | a pure function from a record and the final log to the violations |
//! | [`workload`] | users and their actions, bounded and seeded |
//! | [`services`] | a temporary Postgres and a temporary Redis |
//!
//! It depends only on the server's protocol, not on its code. The program `starling-loadtest`, in
//! `tool`, uses this library.

pub mod actor;
pub mod checker;
pub mod client;
pub mod device;
pub mod history;
pub mod services;
pub mod wire;
pub mod workload;
