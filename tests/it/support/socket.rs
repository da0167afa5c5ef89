//! A WebSocket client. It checks every frame against `/asyncapi.json`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, Response};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use super::{User, contract};

/// The most time for a frame to arrive.
const FRAME_MAX: Duration = Duration::from_secs(10);
/// How long a test waits to see that nothing arrives.
const SILENCE: Duration = Duration::from_millis(300);

/// A connection to the gateway.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// The request that opens a connection; the test may change it.
    pub fn request(user: &User) -> Request<()> {
        format!("{}/ws", user.base.replace("http://", "ws://")).into_client_request().unwrap()
    }

    /// The request that opens an authenticated connection.
    pub fn authenticated(user: &User) -> Request<()> {
        let mut request = Self::request(user);
        let bearer = HeaderValue::from_str(&format!("Bearer {}", user.token)).unwrap();
        request.headers_mut().insert("authorization", bearer);
        request
    }

    /// Opens a connection with this request; returns the handshake's answer, too.
    pub async fn open(
        request: Request<()>,
    ) -> Result<(Self, Response<Option<Vec<u8>>>), tungstenite::Error> {
        let (stream, response) = connect_async(request).await?;
        Ok((Self { stream }, response))
    }

    /// Opens an authenticated connection with a small receive buffer, as of a slow client. It is
    /// not synced.
    pub async fn narrow(user: &User) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream =
            socket.connect(user.base.trim_start_matches("http://").parse().unwrap()).await.unwrap();

        let (stream, _) = client_async(Self::authenticated(user), MaybeTlsStream::Plain(stream))
            .await
            .expect("the handshake succeeds");
        let mut socket = Self { stream };
        socket.expect("ready").await;
        socket
    }

    /// The status with which the server refuses this handshake.
    #[track_caller]
    pub fn refused(request: Request<()>) -> impl Future<Output = u16> {
        let caller = std::panic::Location::caller();
        async move {
            match Self::open(request).await {
                Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
                Err(error) => panic!("at {caller}: {error}"),
                Ok(_) => panic!("at {caller}: the handshake succeeded"),
            }
        }
    }

    /// An authenticated connection that is not synced; `ready` is consumed.
    pub async fn connect(user: &User) -> Self {
        let (mut socket, _) =
            Self::open(Self::authenticated(user)).await.expect("the handshake succeeds");
        socket.expect("ready").await;
        socket
    }

    /// An authenticated and synced connection.
    pub async fn live(user: &User) -> Self {
        let mut socket = Self::connect(user).await;
        socket.send(json!({ "type": "sync" })).await;
        socket.until("synced").await;
        socket
    }

    /// An authenticated connection that resumes from the revs in `known`, and the frames up to
    /// `synced`, inclusive.
    pub async fn resumed(user: &User, known: Value) -> (Self, Vec<Value>) {
        let mut socket = Self::connect(user).await;
        socket.send(json!({ "type": "sync", "chats": known })).await;
        let frames = socket.until("synced").await;
        (socket, frames)
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_raw(Message::text(frame.to_string())).await;
    }

    /// Sends a message of any kind.
    pub async fn send_raw(&mut self, message: Message) {
        self.stream.send(message).await.expect("the frame is sent");
    }

    /// Sends a message of any kind; returns whether the connection was still open.
    pub async fn try_send_raw(&mut self, message: Message) -> bool {
        self.stream.send(message).await.is_ok()
    }

    /// The next message of any kind; `None` once the connection is closed.
    pub async fn next_raw(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(FRAME_MAX, self.stream.next())
            .await
            .expect("a message arrives in time");
        next.and_then(Result::ok)
    }

    /// The next message of any kind, if one arrives within `span` and the connection is open.
    pub async fn next_raw_in(&mut self, span: Duration) -> Option<Message> {
        tokio::time::timeout(span, self.stream.next()).await.ok()?.and_then(Result::ok)
    }

    /// The next frame, if it has already arrived.
    pub async fn next_now(&mut self) -> Option<Value> {
        match self.next_raw_in(Duration::from_millis(10)).await? {
            Message::Text(text) => serde_json::from_str(&text).ok(),
            _ => None,
        }
    }

    /// The next frame. Pings and pongs are skipped.
    pub async fn next(&mut self) -> Value {
        loop {
            match self.next_raw().await {
                Some(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    contract::check_frame(&frame);
                    return frame;
                }
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// The next frame, which must be of this type.
    #[track_caller]
    pub fn expect<'a>(&'a mut self, kind: &'a str) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let frame = self.next().await;
            assert_eq!(frame["type"], kind, "at {caller}: {frame}");
            frame
        }
    }

    /// All frames up to and with the first of this type.
    pub async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut frames = vec![self.next().await];
        while frames.last().is_some_and(|frame| frame["type"] != kind) {
            frames.push(self.next().await);
        }
        frames
    }

    /// Fails unless the connection answers a ping.
    #[track_caller]
    pub fn ping(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.ask(json!({ "type": "ping" })).await;
            assert_eq!(answer["type"], "pong", "at {caller}: {answer}");
        }
    }

    /// Sends a frame and waits for its answer; the frames before it are skipped.
    pub async fn ask(&mut self, mut frame: Value) -> Value {
        let id = format!("ask-{}", rand::random::<u32>());
        frame["id"] = json!(id);
        self.send(frame).await;
        loop {
            let answer = self.next().await;
            if answer["id"] == json!(id) {
                return answer;
            }
        }
    }

    /// Fails if a frame arrives within [`SILENCE`].
    pub async fn expect_silence(&mut self) {
        if let Ok(Some(Ok(Message::Text(text)))) =
            tokio::time::timeout(SILENCE, self.stream.next()).await
        {
            panic!("expected nothing, got {text}");
        }
    }

    /// The code that the server closes with, 0 without one; the frames before it are skipped.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.next_raw().await {
                Some(Message::Close(Some(frame))) => return frame.code.into(),
                Some(Message::Close(None)) | None => return 0,
                Some(_) => {}
            }
        }
    }

    /// Closes from the client's side.
    pub async fn close(mut self) {
        let _ = self.stream.close(None).await;
    }
}
