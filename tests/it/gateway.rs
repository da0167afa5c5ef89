//! The WebSocket gateway.

mod live;
