//! The formats that Starling defines: the WebSocket frames of both directions, the close codes, and
//! the messages between replicas.
//!
//! They are two contracts, which change by different rules.
//!
//! **Between the server and its clients** ([`client_frame`], [`server_frame`], [`close`]): the
//! public protocol. One enum per direction is the format, its schema and its documentation;
//! [`asyncapi`] makes the `AsyncAPI` document from these enums, so the document cannot differ from
//! the code. Clients of any age connect, so frames and fields are added, but never change their
//! meaning. The payloads are types of `model`, which are public for the same reason.
//!
//! **Between replicas** ([`bus`]): a private format with a version number and types of its own.
//! During a rolling update, two versions of the server share one bus for a few minutes. The format
//! may change if the version number changes with it: a replica that receives a version that it
//! cannot read compares the affected chats with the store. Only the header of a bus message, which
//! names these chats, never changes. No format in [`bus`] is derived from a type of `model`, so
//! that a change of such a type does not change the bus messages.
//!
//! This module uses no socket and no Redis. `gateway` sends and receives the frames, `hub` fills
//! the outboxes, and `cluster` seals, publishes and opens the bus messages.

pub mod asyncapi;
pub mod bus;
pub mod client_frame;
pub mod close;
pub mod server_frame;

pub use asyncapi::SUBPROTOCOL;
pub use client_frame::{ClientFrame, Incoming};
pub use close::CloseCode;
pub use server_frame::{EncodedEvent, FrameId, ServerFrame};
