//! Starling, a self-hosted chat server. This is the map of the tree; imports point down only.
//!
//! ```text
//! main, cli        flags → configuration → server → exit code; commands for operators
//! server           the composition root: creates the backends, starts and stops all parts
//! listener         accepts connections
//! api   gateway    HTTP endpoints | WebSocket connections
//! worker           background work of one replica at a time: cleanup, durable consumers
//! service   hub    the rules: check → store → publish | this replica's subscriptions and outboxes
//! presence         the users who are online: connection slots, linger, watchers
//! store   cluster  all SQL | the state that replicas share: bus, sessions, presence, rate limits
//! wire             frames of both directions, close codes, AsyncAPI; the messages between replicas
//! model            values and rules, without I/O
//! config, metrics, tasks, telemetry   beside the layers
//! ```
//!
//! A sent message passes through `gateway::connection` (receives the frame), `service::messages`
//! and `service::appender` (check it and put it into a batch), `store::append` (commits the batch)
//! and `hub` (delivers it to the outboxes).

mod api;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod gateway;
pub mod hub;
mod listener;
pub mod metrics;
pub mod model;
pub mod presence;
pub mod server;
pub mod service;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod wire;
pub mod worker;
