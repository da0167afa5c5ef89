//! Why connections close, and the code that tells the client what to do next.

use axum::extract::ws::CloseFrame;
use tokio_tungstenite::tungstenite;

use crate::hub::CloseReason;
use crate::model::{Error, Kind};

/// A close code of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The client closed, or is gone.
    Normal,
    /// The server goes away.
    GoingAway,
    /// The bytes are no WebSocket frames.
    ProtocolError,
    /// A text frame is not UTF-8.
    NotUtf8,
    /// A message is larger than the bound.
    TooBig,
    /// A fault of the server.
    InternalError,
    /// The server restarts: reconnect after the time of the `reconnect` frame.
    Restarting,
    /// The service is away: reconnect later.
    TryAgainLater,
    /// Too many bad frames.
    BadProtocol,
    /// The token is not valid, or the session ended: do not reconnect with it.
    NotAuthenticated,
    /// No authentication or heartbeat in time.
    TimedOut,
    /// The user has too many connections.
    TooManyConnections,
    /// The client reads too slowly: reconnect and `sync`.
    TooSlow,
    /// Too many frames, or too many connections in a short time.
    RateLimited,
}

impl CloseCode {
    /// Every code, for the document.
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

    /// The code on the wire, and the reason in words.
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

    /// The frame that closes with this code.
    pub fn frame(self) -> CloseFrame {
        let (code, reason) = self.wire();
        CloseFrame { code, reason: reason.into() }
    }

    /// What an error before or instead of an answer means for the connection.
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

    /// What a failure to read a frame means.
    pub fn of_protocol_error(error: axum::Error) -> Self {
        match error.into_inner().downcast::<tungstenite::Error>().map(|error| *error) {
            Ok(tungstenite::Error::Capacity(_)) => Self::TooBig,
            Ok(tungstenite::Error::Utf8(_)) => Self::NotUtf8,
            Ok(tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                Self::Normal
            }
            Ok(tungstenite::Error::Protocol(_)) => Self::ProtocolError,
            _ => Self::Normal,
        }
    }
}

impl From<CloseReason> for CloseCode {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::SessionEnded => Self::NotAuthenticated,
            CloseReason::TooSlow => Self::TooSlow,
            CloseReason::TooManyConnections => Self::TooManyConnections,
            CloseReason::Restarting | CloseReason::LogFellBack => Self::Restarting,
        }
    }
}
