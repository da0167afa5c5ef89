//! Starling: a chat server that people run themselves. This is the map of the tree; imports point
//! down only.
//!
//! ```text
//! main, cli        flags → configuration → server → exit code; the operator's commands
//! server           the composition root: names the backends, starts and stops everything
//! listener         accepts connections
//! api   gateway    HTTP endpoints | WebSocket connections
//! service   hub    the rules: check → store → publish | this replica's sockets: who follows which chat
//! presence         which users are online: slots, linger, watchers
//! store   cluster  the durable truth, all SQL | what replicas share: bus, session cache, presence, rate limits
//! wire             frames of both directions, close codes, AsyncAPI; the messages between replicas
//! model            what it is all about, without I/O
//! config, metrics, tasks, telemetry   beside the layers
//! ```
//!
//! "A message is sent" goes through `gateway::connection` (a frame comes in), `service::messages`
//! and `service::appender` (checked, grouped), `store::append` (committed), `hub` (to every
//! socket).

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
