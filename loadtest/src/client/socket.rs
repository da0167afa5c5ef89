//! One WebSocket connection with small, explicit buffers.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::wire::Frame;

/// Size of one read from the socket.
const READ_BUFFER_BYTES: usize = 4096;
/// Maximum size of a frame. A `synced` with 10,000 chats takes half of it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Options of a connection.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Maximum time of the connect, and of each write.
    pub timeout: Duration,
    /// The kernel's receive buffer, in bytes. A small one makes the client a slow consumer.
    pub receive_buffer_bytes: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), receive_buffer_bytes: None }
    }
}

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The server refused the handshake with this status.
    Refused(u16),
    /// There was no answer in time, or none of a WebSocket server.
    Failed,
}

/// Input from the server.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all values are the large variant, and none is stored"
)]
pub enum Incoming {
    /// A frame of the protocol.
    Frame(Frame),
    /// Input that is not a valid frame, such as invalid JSON.
    Garbage,
    /// The end of the connection: the server's close code, or `None` if the connection broke.
    Closed(Option<u16>),
}

/// A WebSocket connection.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    timeout: Duration,
}

impl Socket {
    /// Connects to the replica at `base` (`http://host:port`) with a token. The first frame is
    /// `ready`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        base: &str,
        token: &str,
        options: SocketOptions,
    ) -> Result<Self, ConnectError> {
        let opening = Self::open(base, token, options);
        timeout(options.timeout, opening).await.unwrap_or(Err(ConnectError::Failed))
    }

    async fn open(base: &str, token: &str, options: SocketOptions) -> Result<Self, ConnectError> {
        let failed = |_| ConnectError::Failed;
        let authority = base.trim_start_matches("http://").trim_end_matches('/');
        let mut addresses = tokio::net::lookup_host(authority).await.map_err(failed)?;
        let address = addresses.next().ok_or(ConnectError::Failed)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
            .map_err(failed)?;

        if let Some(bytes) = options.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes).map_err(failed)?;
        }

        let stream = socket.connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;

        let mut request = format!("ws://{authority}/ws")
            .into_client_request()
            .map_err(|_| ConnectError::Failed)?;
        let bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ConnectError::Failed)?;
        request.headers_mut().insert("authorization", bearer);

        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));

        match client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream, timeout: options.timeout }),
            Err(tungstenite::Error::Http(response)) => {
                Err(ConnectError::Refused(response.status().as_u16()))
            }
            Err(_) => Err(ConnectError::Failed),
        }
    }

    /// Sends a frame. Returns whether the connection accepted it, which does not mean that the
    /// server received it.
    pub async fn send(&mut self, frame: &Value) -> bool {
        let sending = self.stream.send(Message::text(frame.to_string()));
        matches!(timeout(self.timeout, sending).await, Ok(Ok(())))
    }

    /// Waits for the next input. Cancel-safe.
    pub async fn next(&mut self) -> Incoming {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map_or(Incoming::Garbage, Incoming::Frame);
                }
                Some(Ok(Message::Binary(_))) => return Incoming::Garbage,
                Some(Ok(Message::Close(frame))) => {
                    return Incoming::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Incoming::Closed(None),
            }
        }
    }

    /// Closes the connection with a close frame.
    pub async fn close(mut self) {
        let _ = timeout(self.timeout, self.stream.close(None)).await;
    }
}
