//! A client that keeps nothing but how far it knows its one chat: a thousand of them cost little.
//! In that chat there must be nothing but new messages, so that each rev is told once.

use std::time::Duration;

use serde_json::json;
use starling_loadtest::client::{Incoming, Socket, SocketOptions};
use starling_loadtest::wire::FrameKind;

use crate::support::User;

/// How long a frame may take where one is due.
const FRAME_MAX: Duration = Duration::from_secs(20);

/// A connection that asked for what came after some rev.
pub struct Light {
    socket: Socket,
    chat: String,
    /// Up to where it knows the chat, once it knows it.
    pub rev: Option<u32>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The next rev.
    Told(u32),
    /// It is up to date.
    Synced,
    /// The end.
    Closed(Option<u16>),
}

impl Light {
    /// Connects and sends `sync`, which names the chat if it is known.
    ///
    /// # Errors
    /// Why there is no connection, in words.
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
        let known = rev.map_or_else(|| json!({}), |rev| json!({ chat: rev }));
        let asked = socket.send(&json!({ "type": "sync", "chats": known })).await;
        if asked {
            Ok(Self { socket, chat: chat.to_owned(), rev })
        } else {
            Err("it is closed".to_owned())
        }
    }

    /// What comes next of the chat. Fails unless it goes on where it was.
    pub async fn step(&mut self) -> Step {
        loop {
            let next = tokio::time::timeout(FRAME_MAX, self.socket.next()).await;
            let frame = match next.expect("something comes in time") {
                Incoming::Frame(frame) => frame,
                Incoming::Closed(code) => return Step::Closed(code),
                Incoming::Garbage => panic!("that is no frame"),
            };
            match frame.kind {
                FrameKind::NewMessage => {
                    let rev = frame.rev.unwrap();
                    assert_eq!(self.rev.map(|rev| rev + 1), Some(rev), "without a gap, and once");
                    self.rev = Some(rev);
                    return Step::Told(rev);
                }
                FrameKind::ChatAdded => self.rev = frame.chat.map(|chat| chat.rev),
                FrameKind::Synced => {
                    assert_eq!(
                        frame.chats.unwrap().get(&self.chat).copied(),
                        self.rev,
                        "it is told all up to here"
                    );
                    return Step::Synced;
                }
                // Who can't be brought up to date is told so, and closed.
                FrameKind::Error => {
                    assert_eq!(frame.code.as_deref(), Some("unavailable"), "{frame:?}")
                }
                FrameKind::Presence | FrameKind::Reconnect | FrameKind::Pong => {}
                _ => panic!("unexpected {frame:?}"),
            }
        }
    }

    /// Reads until it knows this rev. Whether it got there before the connection ended.
    pub async fn until(&mut self, rev: u32) -> bool {
        while self.rev.is_none_or(|known| known < rev) {
            if let Step::Closed(_) = self.step().await {
                return false;
            }
        }
        true
    }

    /// Reads until it is up to date. Whether it got there before the connection ended.
    pub async fn until_synced(&mut self) -> bool {
        loop {
            match self.step().await {
                Step::Synced => return true,
                Step::Told(_) => {}
                Step::Closed(_) => return false,
            }
        }
    }
}
