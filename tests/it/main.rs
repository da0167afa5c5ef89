//! The promises of the server, one test each. Most go through the real ports, on both databases.

mod gateway;
mod process;
mod store;
mod support;
mod tidy;
