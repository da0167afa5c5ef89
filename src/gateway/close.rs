//! The end of a connection, in the types of the WebSocket library.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::model::limits::CLOSE_MAX;
use crate::wire::CloseCode;

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

/// Sends the close code and gives the client a moment to answer it. Frames that still arrive are
/// ignored.
pub async fn close(socket: &mut WebSocket, code: CloseCode) {
    let handshake = async {
        if socket.send(Message::Close(Some(close_frame(code)))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let patience = if code == CloseCode::Normal { Duration::from_millis(500) } else { CLOSE_MAX };
    let _ = tokio::time::timeout(patience, handshake).await;
}

fn close_frame(code: CloseCode) -> CloseFrame {
    let (code, reason) = code.wire();
    CloseFrame { code, reason: reason.into() }
}
