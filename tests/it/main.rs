//! The promises of the server, one test for each. Most tests use the real ports, on both databases.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test, a failure is a panic"
)]

mod api;
mod breakdown;
mod chaos;
mod cluster;
mod documents;
mod gateway;
mod hardening;
mod outages;
mod postgres;
mod process;
mod store;
mod support;
