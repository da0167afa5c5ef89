//! The close codes of the protocol. Each code determines what the client does next.

use crate::model::{Error, Kind};

/// A close code of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The client closed the connection, or the connection broke.
    Normal,
    /// The endpoint is going away (RFC 6455). A browser sends it when its page is closed.
    GoingAway,
    /// The client violated the WebSocket protocol.
    ProtocolError,
    /// A text frame is not UTF-8.
    NotUtf8,
    /// A message exceeds the bound on its size.
    TooBig,
    /// The server has a defect.
    InternalError,
    /// The server restarts: reconnect after the time of the `reconnect` frame.
    Restarting,
    /// The database is unavailable: reconnect later.
    TryAgainLater,
    /// The client sent too many bad frames in a row.
    BadProtocol,
    /// The token is not valid, or the session ended: do not reconnect with it.
    NotAuthenticated,
    /// The client did not authenticate or send a heartbeat in time.
    TimedOut,
    /// The user has too many connections.
    TooManyConnections,
    /// The client is a slow consumer: reconnect and `sync`.
    TooSlow,
    /// The client sent too many frames, or the user opened too many connections in a short time.
    RateLimited,
}

impl CloseCode {
    /// All codes, for the `AsyncAPI` document.
    pub const ALL: &[Self] = &[
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::NotUtf8,
        Self::TooBig,
        Self::InternalError,
        Self::Restarting,
        Self::TryAgainLater,
        Self::BadProtocol,
        Self::NotAuthenticated,
        Self::TimedOut,
        Self::TooManyConnections,
        Self::TooSlow,
        Self::RateLimited,
    ];

    /// The status code (RFC 6455, section 7.4) and the reason phrase.
    pub const fn wire(self) -> (u16, &'static str) {
        match self {
            Self::Normal => (1000, ""),
            Self::GoingAway => (1001, "going away"),
            Self::ProtocolError => (1002, "not the WebSocket protocol"),
            Self::NotUtf8 => (1007, "text that is not UTF-8"),
            Self::TooBig => (1009, "message too big"),
            Self::InternalError => (1011, "the server made a mistake"),
            Self::Restarting => (1012, "restarting"),
            Self::TryAgainLater => (1013, "try again later"),
            Self::BadProtocol => (4400, "too many bad frames"),
            Self::NotAuthenticated => (4401, "not authenticated, or the session ended"),
            Self::TimedOut => (4408, "no authentication or heartbeat in time"),
            Self::TooManyConnections => (4409, "too many connections"),
            Self::TooSlow => (4413, "too slow: reconnect and sync"),
            Self::RateLimited => (4429, "too many frames or connections"),
        }
    }

    /// The code for an error that ends the connection.
    pub fn of_error(error: &Error) -> Self {
        match error.kind() {
            Kind::Unauthenticated => Self::NotAuthenticated,
            Kind::RateLimited => Self::RateLimited,
            Kind::Unavailable => Self::TryAgainLater,
            Kind::Internal => Self::InternalError,
            Kind::TooLarge => Self::TooBig,
            Kind::Malformed
            | Kind::Forbidden
            | Kind::NotFound
            | Kind::MethodNotAllowed
            | Kind::Conflict
            | Kind::UnsupportedMediaType
            | Kind::Invalid => Self::BadProtocol,
        }
    }
}
