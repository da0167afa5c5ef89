//! A client that stores only the rev of its one chat, so that a thousand clients cost little. The
//! only changes of the chat must be new messages, so that each rev arrives once.

use std::time::Duration;

use serde_json::json;
use starling_loadtest::client::{Incoming, Socket, SocketOptions};
use starling_loadtest::wire::FrameKind;

use crate::support::User;

/// How long an expected frame may take.
const FRAME_MAX: Duration = Duration::from_secs(20);

/// A connection that synced from a rev.
pub struct Light {
    socket: Socket,
    chat: String,
    /// The latest rev, once the client has one.
    pub rev: Option<u32>,
}

/// A step of the stream of frames.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A new message with this rev.
    Message(u32),
    /// The end of the sync.
    Synced,
    /// The end of the connection, with its close code.
    Closed(Option<u16>),
}

impl Light {
    /// Connects and sends `sync`, which names the chat if there is a rev.
    ///
    /// # Errors
    /// A description if there is no connection.
    pub async fn connect(
        user: &User,
        chat: &str,
        rev: Option<u32>,
        narrow: bool,
    ) -> Result<Self, String> {
        let receive_buffer_bytes = narrow.then_some(4096);
        let options = SocketOptions { timeout: FRAME_MAX, receive_buffer_bytes };
        let socket = Socket::connect(&user.base, &user.token, options).await;
        let mut socket = socket.map_err(|error| format!("{error:?}"))?;
        match tokio::time::timeout(FRAME_MAX, socket.next()).await {
            Ok(Incoming::Frame(frame)) if frame.kind == FrameKind::Ready => {}
            other => return Err(format!("{other:?}")),
        }

        let chats = rev.map_or_else(|| json!({}), |rev| json!({ chat: rev }));
        let asked = socket.send(&json!({ "type": "sync", "chats": chats })).await;
        if asked {
            Ok(Self { socket, chat: chat.to_owned(), rev })
        } else {
            Err("the connection is closed".to_owned())
        }
    }

    /// The next step. Fails if a message does not have the next rev.
    pub async fn step(&mut self) -> Step {
        loop {
            let next = tokio::time::timeout(FRAME_MAX, self.socket.next()).await;
            let frame = match next.expect("a frame arrives in time") {
                Incoming::Frame(frame) => frame,
                Incoming::Closed(code) => return Step::Closed(code),
                Incoming::Garbage => panic!("a malformed frame"),
            };

            match frame.kind {
                FrameKind::NewMessage => {
                    let rev = frame.rev.unwrap();
                    assert_eq!(self.rev.map(|rev| rev + 1), Some(rev), "no gap and no duplicate");
                    self.rev = Some(rev);
                    return Step::Message(rev);
                }
                FrameKind::ChatAdded => self.rev = frame.chat.map(|chat| chat.rev),
                FrameKind::Synced => {
                    assert_eq!(
                        frame.chats.unwrap().get(&self.chat).copied(),
                        self.rev,
                        "the client has every change up to here"
                    );
                    return Step::Synced;
                }
                // If a sync fails, the server sends an error and closes the connection.
                FrameKind::Error => {
                    assert_eq!(frame.code.as_deref(), Some("unavailable"), "{frame:?}");
                }
                FrameKind::Presence | FrameKind::Reconnect | FrameKind::Pong => {}
                _ => panic!("unexpected {frame:?}"),
            }
        }
    }

    /// Reads up to this rev. Returns whether it arrived before the connection ended.
    pub async fn until(&mut self, rev: u32) -> bool {
        while self.rev.is_none_or(|latest| latest < rev) {
            if let Step::Closed(_) = self.step().await {
                return false;
            }
        }
        true
    }

    /// Reads up to the end of the sync. Returns whether it arrived before the connection ended.
    pub async fn until_synced(&mut self) -> bool {
        loop {
            match self.step().await {
                Step::Synced => return true,
                Step::Message(_) => {}
                Step::Closed(_) => return false,
            }
        }
    }
}
