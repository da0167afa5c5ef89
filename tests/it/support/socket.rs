//! A WebSocket client. Every frame is held against `/asyncapi.json`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, Response};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use super::{User, contract};

/// How long a frame may take.
const FRAME_MAX: Duration = Duration::from_secs(10);
/// How long nothing must come, where nothing may.
const SILENCE: Duration = Duration::from_millis(300);

/// A connection to the gateway.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// The request that opens a connection, to be changed by the test.
    pub fn request(user: &User) -> Request<()> {
        format!("{}/ws", user.base.replace("http://", "ws://")).into_client_request().unwrap()
    }

    /// Opens a connection by a request; the handshake's answer too.
    pub async fn open(
        request: Request<()>,
    ) -> Result<(Self, Response<Option<Vec<u8>>>), tungstenite::Error> {
        let (stream, response) = connect_async(request).await?;
        Ok((Self { stream }, response))
    }

    /// Opens a connection that takes little into its buffer at once, as over a slow line. It has a
    /// token and is not synced.
    pub async fn narrow(user: &User) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream =
            socket.connect(user.base.trim_start_matches("http://").parse().unwrap()).await.unwrap();
        let mut request = Self::request(user);
        let bearer = HeaderValue::from_str(&format!("Bearer {}", user.token)).unwrap();
        request.headers_mut().insert("authorization", bearer);
        let (stream, _) = client_async(request, MaybeTlsStream::Plain(stream))
            .await
            .expect("the handshake succeeds");
        let mut socket = Self { stream };
        socket.expect("ready").await;
        socket
    }

    /// The status that refuses this handshake.
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

    /// An authenticated connection, `ready` consumed, not yet synced.
    pub async fn connect(user: &User) -> Self {
        let mut request = Self::request(user);
        let bearer = HeaderValue::from_str(&format!("Bearer {}", user.token)).unwrap();
        request.headers_mut().insert("authorization", bearer);
        let (mut socket, _) = Self::open(request).await.expect("the handshake succeeds");
        socket.expect("ready").await;
        socket
    }

    /// An authenticated connection that gets live events.
    pub async fn live(user: &User) -> Self {
        let mut socket = Self::connect(user).await;
        socket.send(json!({ "type": "sync" })).await;
        socket.until("synced").await;
        socket
    }

    /// An authenticated connection that names the chats it knows; what it is told before `synced`,
    /// and that too.
    pub async fn resumed(user: &User, known: Value) -> (Self, Vec<Value>) {
        let mut socket = Self::connect(user).await;
        socket.send(json!({ "type": "sync", "chats": known })).await;
        let told = socket.until("synced").await;
        (socket, told)
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_raw(Message::text(frame.to_string())).await;
    }

    /// Sends anything.
    pub async fn send_raw(&mut self, message: Message) {
        self.stream.send(message).await.expect("the frame is sent");
    }

    /// Sends anything, whether or not the server still takes it.
    pub async fn try_send_raw(&mut self, message: Message) -> bool {
        self.stream.send(message).await.is_ok()
    }

    /// The next message of any kind; `None` once the connection is gone.
    pub async fn next_raw(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(FRAME_MAX, self.stream.next())
            .await
            .expect("something comes in time");
        next.and_then(Result::ok)
    }

    /// The next message of any kind, if one comes within `span` and the connection is there.
    pub async fn next_raw_in(&mut self, span: Duration) -> Option<Message> {
        tokio::time::timeout(span, self.stream.next()).await.ok()?.and_then(Result::ok)
    }

    /// The next frame, if it is there already.
    pub async fn next_now(&mut self) -> Option<Value> {
        match self.next_raw_in(Duration::from_millis(10)).await? {
            Message::Text(text) => serde_json::from_str(&text).ok(),
            _ => None,
        }
    }

    /// The next frame.
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

    /// Sends a frame and waits for its answer; frames that come before it are passed over.
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

    /// Fails if anything comes within a moment.
    pub async fn expect_silence(&mut self) {
        if let Ok(Some(Ok(Message::Text(text)))) =
            tokio::time::timeout(SILENCE, self.stream.next()).await
        {
            panic!("expected nothing, got {text}");
        }
    }

    /// The code that the server closes with; frames before it are passed over.
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
