//! Connections by hand: sockets that send little, and HTTP/2 with a chosen window.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, Response};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::{TestServer, User};

/// The most time for anything that must happen: far more than the deadlines that tests set.
pub const IN_TIME: Duration = Duration::from_secs(40);

/// The metrics of all servers of this process.
pub async fn metrics(server: &TestServer) -> String {
    reqwest::get(format!("{}/metrics", server.internal_base())).await.unwrap().text().await.unwrap()
}

/// Connects and writes these bytes.
pub async fn say(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that closes at once may have reset the connection by now.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Waits until the server closes a connection; discards the bytes that it sends.
pub async fn until_closed(stream: &mut TcpStream) {
    let mut scratch = [0; 4096];
    let reading = async { while matches!(stream.read(&mut scratch).await, Ok(1..)) {} };
    tokio::time::timeout(IN_TIME, reading).await.expect("the server closes in time");
}

/// The status of `GET path`, on a connection that stays open. `None` if the connection ends without
/// an answer.
pub async fn ask(stream: &mut TcpStream, path: &str, headers: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;

    let mut answer = Vec::new();
    let reading = async {
        loop {
            stream.read_buf(&mut answer).await.ok().filter(|read| *read > 0)?;
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
                return head.split(' ').nth(1)?.parse().ok();
            }
        }
    };
    tokio::time::timeout(IN_TIME, reading).await.expect("an answer or the end comes in time")
}

/// Like [`ask`], on a new connection.
pub async fn ask_once(address: SocketAddr, path: &str, headers: &str) -> Option<u16> {
    ask(&mut TcpStream::connect(address).await.ok()?, path, headers).await
}

/// An HTTP/2 connection whose task answers SETTINGS and PING, as any client does.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    /// Ends with the connection.
    connection: JoinHandle<()>,
}

impl Http2 {
    /// Connects with this window for each stream.
    pub async fn connect(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (requests, connection) =
            builder.initial_window_size(window).handshake(stream).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "a client's task, waited for by the test")]
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self { requests, connection }
    }

    /// Starts `GET path` for a user, once the server accepts another stream.
    pub async fn get(&mut self, user: &User, path: &str) -> Result<ResponseFuture, h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let uri = format!("{}{path}", user.base);
        let mut request = Request::get(uri);
        if !user.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", user.token));
        }
        Ok(requests.send_request(request.body(()).unwrap(), true)?.0)
    }

    /// Waits until the server closes the connection. A client without `requests` would close it.
    pub async fn until_closed(self) {
        let Self { requests, connection } = self;
        tokio::time::timeout(IN_TIME, connection)
            .await
            .expect("the server closes in time")
            .unwrap();
        drop(requests);
    }
}

/// The complete body of an answer, read without delay.
pub async fn read_body(response: Response<RecvStream>) -> Vec<u8> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    bytes
}
