//! One HTTP request, one WebSocket. Neither is recorded here: [`crate::actor`] and
//! [`crate::device`] record them.

mod http;
mod socket;

pub use http::Http;
pub use socket::{ConnectError, Incoming, Socket, SocketOptions};

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// The server did it.
    Ok(T),
    /// The server refused it and will not do it later.
    Refused {
        /// The HTTP status; 0 for a refused frame.
        status: u16,
        /// Stable error code.
        code: String,
    },
    /// Unknown: no answer in time, a broken connection, or an error of the server (5xx).
    Unknown,
}

impl<T> Answer<T> {
    /// The value, if the request succeeded.
    pub fn ok(self) -> Option<T> {
        if let Self::Ok(value) = self { Some(value) } else { None }
    }

    /// Whether the request succeeded.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// Whether the outcome is unknown.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    /// The same outcome with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Ok(value) => Answer::Ok(change(value)),
            Self::Refused { status, code } => Answer::Refused { status, code },
            Self::Unknown => Answer::Unknown,
        }
    }
}
