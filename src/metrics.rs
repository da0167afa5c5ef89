//! Every metric: its name, its help, and the function that records it. Only this module names a
//! metric; the help says what it means when the metric rises.

mod cluster;
mod gateway;
mod http;
mod hub;
mod store;
mod worker;

pub use cluster::*;
pub use gateway::*;
pub use http::*;
pub use hub::*;
pub use store::*;
pub use worker::*;

/// Registers the unit and the help of each metric with the exporter.
pub fn describe() {
    http::describe();
    gateway::describe();
    store::describe();
    hub::describe();
    cluster::describe();
    worker::describe();
}
