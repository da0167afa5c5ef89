//! The promises of the server, one test each. Most go through the real ports, on both databases.

mod documents;
mod gateway;
mod outages;
mod process;
mod store;
mod support;
mod tidy;
