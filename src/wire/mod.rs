//! Everything that Starling writes on a wire of its own, and how it reads it back: the WebSocket
//! frames of both directions, the close codes, and what replicas say to each other.
//!
//! There are two contracts, and they change by different rules.
//!
//! **Between the server and its clients** ([`client_frame`], [`server_frame`], [`close`]): the
//! public protocol. One enum per direction is the format, its schema and its documentation;
//! [`asyncapi`] makes the `AsyncAPI` document from these enums, so the document cannot differ from
//! the code. Clients of any age connect, so a frame keeps its meaning for good: fields and frames
//! are added, never changed. The payloads are types of `model`, which are public for the same
//! reason.
//!
//! **Between replicas** ([`bus`]): a private format with a version number and types of its own.
//! During a rolling update two versions of the server share one bus for a few minutes, so the
//! format may change freely as long as the version number changes with it: a replica that meets a
//! version it cannot read compares the chats concerned with the store. Only the header of a bus
//! message, which names these chats, is fixed for good. Nothing in [`bus`] derives its format from
//! a type of `model`: a change there must not change what replicas say to each other.
//!
//! This module knows no socket and no Redis. `gateway` moves the frames, `hub` fills the outboxes,
//! and `cluster` seals, publishes and opens the bus messages.

pub mod asyncapi;
pub mod bus;
pub mod client_frame;
pub mod close;
pub mod server_frame;

pub use client_frame::{ClientFrame, Incoming};
pub use close::CloseCode;
pub use server_frame::{EncodedEvent, FrameId, ServerFrame};

/// The WebSocket subprotocol that this server speaks.
pub const SUBPROTOCOL: &str = "starling.v1";
