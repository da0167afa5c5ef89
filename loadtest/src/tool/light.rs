//! A fast connection with small buffers that records no frames. It checks that the revs of each
//! chat have no gap, for which it keeps one number per chat. Acknowledged sends are checked against
//! the history after the run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::verdict::Verdict;

/// Size of the read buffer; small, because one process holds thousands of connections.
const READ_BUFFER_BYTES: usize = 2048;
/// Size of the kernel's receive buffer of a slow consumer.
const NARROW_BYTES: u32 = 4096;
/// Timeout of connecting and syncing.
const CONNECT: Duration = Duration::from_secs(20);
/// Attempts to reconnect after the connection ended.
const RETURNS_MAX: u32 = 8;
/// Heartbeat interval until the server sends its own.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Opens a WebSocket connection with small buffers.
pub async fn open(
    base: &str,
    path: &str,
    token: &str,
) -> Result<WebSocketStream<TcpStream>, String> {
    let authority = base.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(authority).await.map_err(|error| format!("{base}: {error}"))?;
    upgrade(stream, authority, path, token).await
}

/// The same with a small kernel receive buffer, so that the server's writes soon block when the
/// client does not read.
async fn open_narrow(
    base: &str,
    path: &str,
    token: &str,
) -> Result<WebSocketStream<TcpStream>, String> {
    let authority = base.trim_start_matches("http://").trim_end_matches('/');
    let failed = |error: std::io::Error| format!("{base}: {error}");
    let address = tokio::net::lookup_host(authority).await.map_err(failed)?.next();
    let address = address.ok_or_else(|| format!("{base}: no such address"))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        .map_err(failed)?;

    // The buffer size must be set before the connection is made.
    socket.set_recv_buffer_size(NARROW_BYTES).map_err(failed)?;
    let stream = socket.connect(address).await.map_err(failed)?;
    upgrade(stream, authority, path, token).await
}

async fn upgrade(
    stream: TcpStream,
    authority: &str,
    path: &str,
    token: &str,
) -> Result<WebSocketStream<TcpStream>, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;

    let url = format!("ws://{authority}{path}");
    let mut request = url.into_client_request().map_err(|error| error.to_string())?;
    if !token.is_empty() {
        let bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| error.to_string())?;
        request.headers_mut().insert("authorization", bearer);
    }

    let config =
        WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(0);
    let opened = client_async_with_config(request, stream, Some(config)).await;
    opened.map(|(stream, _)| stream).map_err(|error| format!("{authority}: {error}"))
}

/// A received frame, reduced to the fields that the workloads need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The server acknowledged a frame of this client.
    Ack {
        /// Id of the client's frame.
        frame: u64,
        /// Id of the message that it created.
        message_id: u32,
        /// Rev of the chat after the message.
        rev: u32,
    },
    /// The server refused a frame of this client.
    Refused {
        /// Id of the client's frame.
        frame: Option<u64>,
        /// The error code.
        code: String,
    },
    /// A new message in a chat of this user.
    New {
        /// Time at which the send was due, in microseconds of the run's clock; absent in texts that
        /// this program did not write.
        stamp_us: Option<u64>,
    },
    /// Any other frame.
    Other,
    /// End of the connection, with the close code; 0 if it was cut.
    Closed(u16),
}

#[derive(Deserialize)]
struct ServerFrame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    chat_id: Option<&'a str>,
    #[serde(default)]
    rev: Option<u32>,
    #[serde(default)]
    message: Option<FrameMessage>,
    #[serde(default)]
    chats: Option<HashMap<String, u32>>,
    #[serde(default)]
    chat: Option<FrameChat>,
    #[serde(default)]
    heartbeat_interval_ms: Option<u64>,
    #[serde(default)]
    code: Option<String>,
}

#[derive(Deserialize)]
struct FrameMessage {
    id: u32,
    #[serde(default)]
    rev: u32,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct FrameChat {
    id: String,
    rev: u32,
}

/// Parses the due time that each text of this program begins with.
fn stamp_us(text: Option<&str>) -> Option<u64> {
    text?.strip_prefix("t=")?.split(' ').next()?.parse().ok()
}

/// A synced connection of a user.
#[derive(Debug)]
pub struct Light {
    stream: WebSocketStream<TcpStream>,
    base: String,
    token: String,
    revs: Revs,
    heartbeat: Duration,
    pinged: Instant,
    slow: bool,
    /// Bytes of text that this client received while it was slow.
    waited_bytes: usize,
}

/// Checks the order of revs.
#[derive(Debug)]
struct Revs {
    /// Last received rev of each chat.
    known: HashMap<String, u32>,
    /// True between `sync` and `synced`.
    replaying: bool,
    verdict: Arc<Verdict>,
}

impl Revs {
    /// Checks a received rev: it must follow the last one. Chats that the connection is not
    /// subscribed to are ignored.
    fn received(&mut self, chat: &str, rev: u32) {
        let Some(known) = self.known.get_mut(chat) else { return };

        // A replay contains only the last of several changes of one thing, so gaps are allowed.
        if rev > *known + 1 && !self.replaying {
            self.verdict.chat(chat, *known + 1, &format!("missing; {rev} came after {known}"));
        } else if rev <= *known {
            self.verdict.chat(
                chat,
                rev,
                &format!("told again, or late: {known} was there already"),
            );
        }
        *known = rev.max(*known);
    }

    /// Accepts a `member_count` frame, which replaces all earlier frames up to its rev.
    fn counted(&mut self, chat: &str, rev: u32) {
        if let Some(known) = self.known.get_mut(chat) {
            *known = rev.max(*known);
        }
    }
}

impl Light {
    /// Connects and syncs. `slow` is for a client that will read nothing for a while.
    ///
    /// # Errors
    /// If this fails or takes longer than 20 s.
    pub async fn connect(
        base: &str,
        token: &str,
        slow: bool,
        verdict: Arc<Verdict>,
    ) -> Result<Self, String> {
        let connecting = async {
            let stream = if slow {
                open_narrow(base, "/ws", token).await?
            } else {
                open(base, "/ws", token).await?
            };
            let revs = Revs { known: HashMap::new(), replaying: false, verdict };
            let (base, token) = (base.to_owned(), token.to_owned());

            let mut light = Self {
                stream,
                base,
                token,
                revs,
                heartbeat: HEARTBEAT,
                pinged: Instant::now(),
                slow,
                waited_bytes: 0,
            };
            light.sync().await?;
            Ok(light)
        };
        timeout(CONNECT, connecting).await.map_err(|_| format!("{base}: connecting timed out"))?
    }

    /// Reconnects to another address and receives the missed frames.
    ///
    /// # Errors
    /// As [`Light::reconnect`].
    pub async fn reconnect_to(&mut self, base: &str) -> Result<(), String> {
        base.clone_into(&mut self.base);
        self.reconnect().await
    }

    /// Reconnects and receives the missed frames.
    ///
    /// # Errors
    /// If all attempts fail.
    pub async fn reconnect(&mut self) -> Result<(), String> {
        let mut last = String::new();
        for attempt in 0..RETURNS_MAX {
            tokio::time::sleep(Duration::from_millis(100) * (1 << attempt.min(5))).await;

            match timeout(CONNECT, open(&self.base, "/ws", &self.token)).await {
                Ok(Ok(stream)) => {
                    (self.stream, self.slow) = (stream, false);
                    match timeout(CONNECT, self.sync()).await {
                        Ok(Ok(())) => return Ok(()),
                        Ok(Err(error)) => last = error,
                        Err(_) => "sync timed out".clone_into(&mut last),
                    }
                }
                Ok(Err(error)) => last = error,
                Err(_) => "connecting timed out".clone_into(&mut last),
            }
        }
        Err(last)
    }

    async fn sync(&mut self) -> Result<(), String> {
        self.pinged = Instant::now();
        self.revs.replaying = true;
        let frame = json!({ "type": "sync", "chats": self.revs.known }).to_string();
        if !self.put(frame).await {
            return Err("the connection ended at once".to_owned());
        }

        loop {
            let text =
                self.text().await.map_err(|code| format!("closed with {code} during sync"))?;
            let (frame, synced) = self.read(&text);
            match frame {
                Heard::Refused { code, .. } => return Err(format!("sync was refused: {code}")),
                _ if synced => return Ok(()),
                _ => {}
            }
        }
    }

    async fn put(&mut self, text: String) -> bool {
        self.stream.send(Message::text(text)).await.is_ok()
    }

    async fn text(&mut self) -> Result<tokio_tungstenite::tungstenite::Utf8Bytes, u16> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    self.waited_bytes += if self.slow { text.len() } else { 0 };
                    return Ok(text);
                }
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map_or(0, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
    }

    /// Parses a frame and checks its rev. Also returns whether it is `synced`.
    fn read(&mut self, text: &str) -> (Heard, bool) {
        let Ok(frame) = serde_json::from_str::<ServerFrame<'_>>(text) else {
            self.revs
                .verdict
                .say(format!("not a frame of the protocol: {}", text.get(..80).unwrap_or(text)));
            return (Heard::Other, false);
        };
        match (frame.kind, frame.chat_id, frame.rev) {
            ("ack", ..) => {
                let (message_id, rev) =
                    frame.message.map_or((0, 0), |message| (message.id, message.rev));
                return (Heard::Ack { frame: frame.id.unwrap_or(0), message_id, rev }, false);
            }
            ("error", ..) => {
                return (
                    Heard::Refused { frame: frame.id, code: frame.code.unwrap_or_default() },
                    false,
                );
            }
            ("ready", ..) => {
                self.heartbeat =
                    frame.heartbeat_interval_ms.map_or(HEARTBEAT, Duration::from_millis);
            }
            ("synced", ..) => {
                self.revs.replaying = false;
                self.revs.known.extend(frame.chats.unwrap_or_default());
                return (Heard::Other, true);
            }
            ("chat_added", ..) => {
                if let Some(chat) = frame.chat {
                    self.revs.known.entry(chat.id).or_insert(chat.rev);
                }
            }
            ("chat_gone", Some(chat), _) => drop(self.revs.known.remove(chat)),
            ("reset", Some(chat), Some(rev)) => drop(self.revs.known.insert(chat.to_owned(), rev)),
            ("member_count", Some(chat), Some(rev)) => self.revs.counted(chat, rev),
            (_, Some(chat), Some(rev)) => self.revs.received(chat, rev),
            _ => {}
        }

        if frame.kind == "new_message" {
            let text = frame.message.and_then(|message| message.text);
            return (Heard::New { stamp_us: stamp_us(text.as_deref()) }, false);
        }
        (Heard::Other, false)
    }

    /// Waits for the next frame. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        match self.text().await {
            Ok(text) => self.read(&text).0,
            Err(code) => Heard::Closed(code),
        }
    }

    /// Sends a message. Returns whether the connection took it. `chat`, `text` and `client_id` come
    /// from this program and need no JSON escaping.
    pub async fn send_message(
        &mut self,
        frame: u64,
        chat: &str,
        text: &str,
        client_id: &str,
    ) -> bool {
        self.put(format!(
            "{{\"type\":\"send_message\",\"id\":{frame},\"chat_id\":\"{chat}\",\
             \"text\":\"{text}\",\"client_id\":\"{client_id}\"}}"
        ))
        .await
    }

    /// Time at which the next heartbeat is due.
    pub fn ping_due(&self) -> Instant {
        self.pinged + self.heartbeat
    }

    /// Sends a heartbeat.
    pub async fn ping(&mut self) -> bool {
        self.pinged = Instant::now();
        self.put(r#"{"type":"ping"}"#.to_owned()).await
    }

    /// Whether this client is a slow consumer. A reconnect ends this.
    pub fn is_slow(&self) -> bool {
        self.slow
    }

    /// Bytes of text that this client received while it was slow: the server's backlog for it.
    pub fn waited_bytes(&self) -> usize {
        self.waited_bytes
    }

    /// Last received rev of a chat.
    pub fn rev(&self, chat: &str) -> u32 {
        self.revs.known.get(chat).copied().unwrap_or(0)
    }

    /// Closes the connection.
    pub async fn close(mut self) {
        let _ = timeout(Duration::from_secs(2), self.stream.close(None)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_and_a_repetition_are_found_with_chat_and_rev() {
        let verdict = Arc::new(Verdict::default());
        let mut revs = Revs {
            known: HashMap::from([("c".to_owned(), 4)]),
            replaying: false,
            verdict: verdict.clone(),
        };
        for rev in [5, 6, 8, 8, 9] {
            revs.received("c", rev);
        }
        revs.received("unknown", 7);
        revs.counted("c", 20);
        revs.received("c", 21);

        let (count, sentences) = verdict.take();
        assert_eq!(count, 2);
        assert_eq!(sentences[0], "chat c: missing; 8 came after 6 (rev 7)");
        assert_eq!(sentences[1], "chat c: told again, or late: 8 was there already (rev 8)");
    }

    #[test]
    fn only_texts_of_this_program_have_a_due_time() {
        assert_eq!(stamp_us(Some("t=1234 0-7 hello")), Some(1234));
        assert_eq!(stamp_us(Some("hello t=1")), None);
        assert_eq!(stamp_us(None), None);
    }
}
