//! One HTTP request, one WebSocket. Nothing here remembers anything: [`crate::actor`] and
//! [`crate::device`] do.

mod http;
mod socket;

pub use http::Http;
pub use socket::{ConnectError, Incoming, Socket, SocketOptions};

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Done.
    Ok(T),
    /// Not done, and it never will be.
    Refused {
        /// The HTTP status; 0 for a refused frame.
        status: u16,
        /// The stable reason.
        code: String,
    },
    /// Nobody knows: no answer in time, a cut connection, or a fault of the server (5xx).
    Unknown,
}

impl<T> Answer<T> {
    /// The value, if it was done.
    pub fn ok(self) -> Option<T> {
        if let Self::Ok(value) = self { Some(value) } else { None }
    }

    /// Whether it was done.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// Whether nobody knows.
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
