//! The promises of the server, one test each. Most go through the real ports, on both databases.

mod api;
mod gateway;
mod support;
