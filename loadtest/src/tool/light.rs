//! A connection for speed: small buffers, no record of what came. It checks on the way that revs
//! have no gap, which takes a number a chat; what was acknowledged is proven from the history
//! afterwards.

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

/// Thousands of them in one process: what is read at once is small.
const READ_BUFFER_BYTES: usize = 2048;
/// The kernel's receive buffer of a connection that is to look slow.
const NARROW_BYTES: u32 = 4096;
/// How long connecting and syncing may take.
const CONNECT: Duration = Duration::from_secs(20);
/// Tries to come back after the connection ended.
const RETURNS_MAX: u32 = 8;
/// The heartbeat until the server tells another.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// A stream with the buffers of this program.
pub async fn open(
    base: &str,
    path: &str,
    token: &str,
) -> Result<WebSocketStream<TcpStream>, String> {
    let authority = base.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(authority).await.map_err(|error| format!("{base}: {error}"))?;
    upgrade(stream, authority, path, token).await
}

/// The same with a small receive buffer, so that the other side soon feels when nothing is read.
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

/// What came, as far as a speed test cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A frame of ours was done.
    Ack {
        /// The frame's number.
        frame: u64,
        /// The message that it made.
        message_id: u32,
        /// The chat's rev with it.
        rev: u32,
    },
    /// A frame of ours was refused.
    Refused {
        /// The frame's number.
        frame: Option<u64>,
        /// Why.
        code: String,
    },
    /// A message in one of our chats.
    New {
        /// When it was meant to be sent, in microseconds of the run's clock; absent in other
        /// people's texts.
        stamp_us: Option<u64>,
    },
    /// Anything else.
    Other,
    /// The end: the close code, 0 for a cut.
    Closed(u16),
}

#[derive(Deserialize)]
struct Note<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    chat_id: Option<&'a str>,
    #[serde(default)]
    rev: Option<u32>,
    #[serde(default)]
    message: Option<NoteMessage>,
    #[serde(default)]
    chats: Option<HashMap<String, u32>>,
    #[serde(default)]
    chat: Option<NoteChat>,
    #[serde(default)]
    heartbeat_interval_ms: Option<u64>,
    #[serde(default)]
    code: Option<String>,
}

#[derive(Deserialize)]
struct NoteMessage {
    id: u32,
    #[serde(default)]
    rev: u32,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct NoteChat {
    id: String,
    rev: u32,
}

/// The stamp that a text of this program begins with.
fn stamp_us(text: Option<&str>) -> Option<u64> {
    text?.strip_prefix("t=")?.split(' ').next()?.parse().ok()
}

/// A user's connection, synced.
#[derive(Debug)]
pub struct Light {
    stream: WebSocketStream<TcpStream>,
    base: String,
    token: String,
    revs: Revs,
    heartbeat: Duration,
    pinged: Instant,
    slow: bool,
    /// Bytes of text that came while it was slow.
    waited_bytes: usize,
}

/// The rev of each chat up to which everything came.
#[derive(Debug)]
struct Revs {
    known: HashMap<String, u32>,
    /// Between `sync` and `synced`.
    replaying: bool,
    verdict: Arc<Verdict>,
}

impl Revs {
    /// A rev that just came: the next one is right. A chat that the connection does not follow
    /// proves nothing.
    fn heard(&mut self, chat: &str, rev: u32) {
        let Some(known) = self.known.get_mut(chat) else { return };
        // Of what changed several times while one was away, only the latest is told.
        if rev > *known + 1 && !self.replaying {
            self.verdict.chat(chat, *known + 1, &format!("not told; {rev} came after {known}"));
        } else if rev <= *known {
            self.verdict.chat(
                chat,
                rev,
                &format!("told again, or late: {known} was there already"),
            );
        }
        *known = rev.max(*known);
    }
}

impl Revs {
    /// A count of members that stands for everything up to a rev.
    fn counted(&mut self, chat: &str, rev: u32) {
        if let Some(known) = self.known.get_mut(chat) {
            *known = rev.max(*known);
        }
    }
}

impl Light {
    /// Connects and syncs. `slow`: for a client that will read nothing for a while.
    ///
    /// # Errors
    /// In a sentence, if that does not work out in 20 s.
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
        timeout(CONNECT, connecting).await.map_err(|_| format!("{base}: not connected in time"))?
    }

    /// Connects again, to another address, and gets what it missed.
    ///
    /// # Errors
    /// As [`Light::come_back`].
    pub async fn come_back_to(&mut self, base: &str) -> Result<(), String> {
        base.clone_into(&mut self.base);
        self.come_back().await
    }

    /// Connects again, and is told what it missed.
    ///
    /// # Errors
    /// If it can't, however often it tries.
    pub async fn come_back(&mut self) -> Result<(), String> {
        let mut last = String::new();
        for turn in 0..RETURNS_MAX {
            tokio::time::sleep(Duration::from_millis(100) * (1 << turn.min(5))).await;
            match timeout(CONNECT, open(&self.base, "/ws", &self.token)).await {
                Ok(Ok(stream)) => {
                    (self.stream, self.slow) = (stream, false);
                    match timeout(CONNECT, self.sync()).await {
                        Ok(Ok(())) => return Ok(()),
                        Ok(Err(error)) => last = error,
                        Err(_) => "no answer to sync in time".clone_into(&mut last),
                    }
                }
                Ok(Err(error)) => last = error,
                Err(_) => "no connection in time".clone_into(&mut last),
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
                self.text().await.map_err(|code| format!("closed while it synced, with {code}"))?;
            let (heard, synced) = self.read(&text);
            match heard {
                Heard::Refused { code, .. } => return Err(format!("not synced: {code}")),
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

    /// What a frame says, and whether it is `synced`.
    fn read(&mut self, text: &str) -> (Heard, bool) {
        let Ok(note) = serde_json::from_str::<Note<'_>>(text) else {
            self.revs.verdict.say(format!(
                "a frame that is none of the protocol: {}",
                text.get(..80).unwrap_or(text)
            ));
            return (Heard::Other, false);
        };
        match (note.kind, note.chat_id, note.rev) {
            ("ack", ..) => {
                let (message_id, rev) =
                    note.message.map_or((0, 0), |message| (message.id, message.rev));
                return (Heard::Ack { frame: note.id.unwrap_or(0), message_id, rev }, false);
            }
            ("error", ..) => {
                return (
                    Heard::Refused { frame: note.id, code: note.code.unwrap_or_default() },
                    false,
                );
            }
            ("ready", ..) => {
                self.heartbeat = note.heartbeat_interval_ms.map_or(HEARTBEAT, Duration::from_millis)
            }
            ("synced", ..) => {
                self.revs.replaying = false;
                self.revs.known.extend(note.chats.unwrap_or_default());
                return (Heard::Other, true);
            }
            ("chat_added", ..) => {
                if let Some(chat) = note.chat {
                    self.revs.known.entry(chat.id).or_insert(chat.rev);
                }
            }
            ("chat_gone", Some(chat), _) => drop(self.revs.known.remove(chat)),
            ("reset", Some(chat), Some(rev)) => drop(self.revs.known.insert(chat.to_owned(), rev)),
            // It stands for all revs before it that did not come.
            ("member_count", Some(chat), Some(rev)) => self.revs.counted(chat, rev),
            (_, Some(chat), Some(rev)) => self.revs.heard(chat, rev),
            _ => {}
        }
        if note.kind == "new_message" {
            return (
                Heard::New { stamp_us: stamp_us(note.message.and_then(|it| it.text).as_deref()) },
                false,
            );
        }
        (Heard::Other, false)
    }

    /// What comes next. Safe to cancel.
    pub async fn next(&mut self) -> Heard {
        match self.text().await {
            Ok(text) => self.read(&text).0,
            Err(code) => Heard::Closed(code),
        }
    }

    /// Sends a message. `chat`, `text` and `client_id` are of this program: nothing in them needs
    /// escaping.
    pub async fn send_message(
        &mut self,
        frame: u64,
        chat: &str,
        text: &str,
        client_id: &str,
    ) -> bool {
        self.put(format!(
            r#"{{"type":"send_message","id":{frame},"chat_id":"{chat}","text":"{text}","client_id":"{client_id}"}}"#
        ))
        .await
    }

    /// When the next heartbeat is due.
    pub fn ping_due(&self) -> Instant {
        self.pinged + self.heartbeat
    }

    /// Sends a heartbeat.
    pub async fn ping(&mut self) -> bool {
        self.pinged = Instant::now();
        self.put(r#"{"type":"ping"}"#.to_owned()).await
    }

    /// Whether it is to read nothing for a while; over once it had to come back.
    pub fn is_slow(&self) -> bool {
        self.slow
    }

    /// Bytes of text that came while it was slow: all that waited for it.
    pub fn waited_bytes(&self) -> usize {
        self.waited_bytes
    }

    /// The rev up to which it was told everything of a chat.
    pub fn rev(&self, chat: &str) -> u32 {
        self.revs.known.get(chat).copied().unwrap_or(0)
    }

    /// Closes from this side.
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
            revs.heard("c", rev);
        }
        revs.heard("unknown", 7);
        revs.counted("c", 20);
        revs.heard("c", 21);
        let (count, sentences) = verdict.take();
        assert_eq!(count, 2);
        assert_eq!(sentences[0], "chat c: not told; 8 came after 6 (rev 7)");
        assert_eq!(sentences[1], "chat c: told again, or late: 8 was there already (rev 8)");
    }

    #[test]
    fn only_texts_of_this_program_have_a_stamp() {
        assert_eq!(stamp_us(Some("t=1234 0-7 hello")), Some(1234));
        assert_eq!(stamp_us(Some("hello t=1")), None);
        assert_eq!(stamp_us(None), None);
    }
}
