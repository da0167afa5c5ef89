//! The WebSocket gateway.

mod authentication;
mod authorisation;
mod closing;
mod frames;
mod limits;
mod membership;
mod order;
mod presence;
mod resets;
mod sessions;
mod sync;
