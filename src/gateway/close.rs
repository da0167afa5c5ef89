//! Close codes as the WebSocket library knows them.

use axum::extract::ws::CloseFrame;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::wire::CloseCode;

/// The frame that closes a connection with this code.
pub fn close_frame(code: CloseCode) -> CloseFrame {
    let (code, reason) = code.wire();
    CloseFrame { code, reason: reason.into() }
}

/// The code that answers a failure to read from the socket.
pub fn code_of_read_error(error: axum::Error) -> CloseCode {
    match error.into_inner().downcast::<Error>().map(|error| *error) {
        Ok(Error::Capacity(_)) => CloseCode::TooBig,
        Ok(Error::Utf8(_)) => CloseCode::NotUtf8,
        // The client disappeared without a closing handshake: an ordinary end.
        Ok(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => CloseCode::Normal,
        Ok(Error::Protocol(_)) => CloseCode::ProtocolError,
        _ => CloseCode::Normal,
    }
}
