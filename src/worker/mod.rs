//! Background work that one replica does at a time.
//!
//! [`lease`] chooses the replica, by a lease in the database. [`cleanup`] removes rows that no
//! client needs any longer. [`consumer`] applies every durable change at least once, for work that
//! must follow a change, such as a search index or a webhook.

pub mod cleanup;
pub mod consumer;
pub mod lease;

pub use cleanup::Cleanup;
pub use consumer::Consumer;
pub use lease::Lease;
