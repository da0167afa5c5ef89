//! Starling: a chat server that people run themselves.
#![doc = "See `ARCHITECTURE.md` for the whole."]

pub mod cluster;
pub mod gateway;
pub mod hub;
pub mod metrics;
pub mod model;
pub mod service;
pub mod store;
