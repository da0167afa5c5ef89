//! The WebSocket gateway.

mod authentication;
mod authorisation;
mod closing;
mod frames;
mod limits;
mod live;
mod membership;
mod order;
mod presence;
mod sessions;
mod sync;
