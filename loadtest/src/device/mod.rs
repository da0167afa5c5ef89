//! A device: one session on one socket that survives reconnects, as a good client would, and
//! records what it sees.

mod connection;
mod reading;
mod reload;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actor::Actor;
use crate::client::{Answer, SocketOptions};
use crate::history::{Digest, Kind, Name};
use crate::wire::Message;

/// Commands that wait for the device's task at most.
const COMMANDS_MAX: usize = 64;

/// How a device behaves.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// The replica to connect to first; after each connection the next one's turn comes.
    pub replica: usize,
    /// How to connect.
    pub socket: SocketOptions,
    /// The first wait before a reconnect; it doubles with each failure and is jittered.
    pub backoff: Duration,
    /// The longest wait before a reconnect.
    pub backoff_max: Duration,
    /// Without any frame for so long the connection counts as dead; absent: two heartbeat
    /// intervals.
    pub silence_max: Option<Duration>,
    /// Seeds the jitter.
    pub seed: u64,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            replica: 0,
            socket: SocketOptions::default(),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(3),
            silence_max: None,
            seed: 0,
        }
    }
}

/// How a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Connections so far.
    pub connections: u32,
    /// Whether it is synced and gets live events.
    pub live: bool,
    /// Why it gave up for good, if it did: the close code, such as 4401.
    pub ended: Option<u16>,
}

/// A handle to a running device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device {
    actor: Actor,
    number: u32,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    known: Known,
    reloads: TaskTracker,
}

/// The revisions that a device knows, by chat.
pub(crate) type Known = Arc<Mutex<HashMap<Name, u32>>>;

#[derive(Debug)]
pub(crate) enum Command {
    /// A frame to be sent, recorded as `kind`.
    Ask { kind: Kind, frame: Json, reply: oneshot::Sender<Answer<Option<Message>>> },
    /// A frame without an answer.
    Tell(Json),
    /// Stop reading, or read again.
    Stall(bool),
    /// Let go of the connection as if the cable were cut, then reconnect.
    Cut,
}

impl Device {
    /// Starts a device, which runs until `stop` or until the server tells it not to come back.
    pub fn start(
        actor: Actor,
        options: DeviceOptions,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let log = actor.history().device(actor.user(), actor.session());
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (telling, status) = watch::channel(Status::default());
        let known = Known::default();
        let running = connection::Running::new(
            actor.clone(),
            options,
            log.clone(),
            known.clone(),
            telling,
            inbox,
            stop,
        );
        let device = Self {
            actor,
            number: log.number(),
            commands,
            status,
            known,
            reloads: running.reloads(),
        };
        tasks.spawn(running.run());
        device
    }

    /// Whose it is.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Its number in the record.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// The revision up to which it knows a chat.
    pub fn known(&self, chat: Name) -> Option<u32> {
        self.known.lock().get(&chat).copied()
    }

    /// Whether it loads a chat, after a `reset`.
    pub fn is_reloading(&self) -> bool {
        !self.reloads.is_empty()
    }

    /// Waits until it is live. Whether it was within `limit`.
    pub async fn until_live(&self, limit: Duration) -> bool {
        self.until(limit, |status| status.live).await
    }

    /// Waits until it gave up for good. Whether it did within `limit`.
    pub async fn until_ended(&self, limit: Duration) -> bool {
        self.until(limit, |status| status.ended.is_some()).await
    }

    async fn until(&self, limit: Duration, holds: impl FnMut(&Status) -> bool) -> bool {
        let mut status = self.status.clone();
        matches!(tokio::time::timeout(limit, status.wait_for(holds)).await, Ok(Ok(_)))
    }

    /// Waits until it knows a chat up to this revision. Whether it does within `limit`.
    pub async fn until_known(&self, chat: Name, rev: u32, limit: Duration) -> bool {
        let waiting = async {
            while self.known(chat).is_none_or(|known| known < rev) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }

    /// Sends a message on the socket. Refused with `not_connected` (and not recorded) while the
    /// device is not live.
    pub async fn send(
        &self,
        chat: &str,
        text: &str,
        client_id: Option<&str>,
    ) -> Answer<Option<Message>> {
        let mut frame = json!({ "type": "send_message", "chat_id": chat, "text": text });
        if let Some(client_id) = client_id {
            frame["client_id"] = json!(client_id);
        }
        self.ask(self.actor.send_kind(chat, text, client_id), frame).await
    }

    /// Changes a message's text on the socket.
    pub async fn edit(&self, chat: &str, message_id: u32, text: &str) -> Answer<Option<Message>> {
        let kind = Kind::Edit {
            chat: self.actor.history().name(chat),
            message_id,
            text: Digest::of(text),
        };
        let frame = json!({ "type": "edit_message", "chat_id": chat, "message_id": message_id, "text": text });
        self.ask(kind, frame).await
    }

    /// Removes a message on the socket.
    pub async fn remove(&self, chat: &str, message_id: u32) -> Answer<Option<Message>> {
        let kind = Kind::Remove { chat: self.actor.history().name(chat), message_id };
        self.ask(
            kind,
            json!({ "type": "remove_message", "chat_id": chat, "message_id": message_id }),
        )
        .await
    }

    /// Moves the read marker on the socket.
    pub async fn mark_read(&self, chat: &str, message_id: u32) -> Answer<Option<Message>> {
        let kind = Kind::MarkRead { chat: self.actor.history().name(chat), message_id };
        self.ask(kind, json!({ "type": "read", "chat_id": chat, "message_id": message_id })).await
    }

    /// Says that the user is typing.
    pub async fn typing(&self, chat: &str) {
        self.command(Command::Tell(json!({ "type": "typing", "chat_id": chat }))).await;
    }

    /// Asks to be told who of these users is online. To be asked again after a reconnect.
    pub async fn watch_presence(&self, user_ids: &[&str]) {
        self.command(Command::Tell(json!({ "type": "watch_presence", "user_ids": user_ids })))
            .await;
    }

    /// Stops reading, as a hung client would; heartbeats go on.
    pub async fn stall(&self) {
        self.command(Command::Stall(true)).await;
    }

    /// Reads again.
    pub async fn unstall(&self) {
        self.command(Command::Stall(false)).await;
    }

    /// Lets go of the connection without a word; the device reconnects.
    pub async fn cut(&self) {
        self.command(Command::Cut).await;
    }

    async fn ask(&self, kind: Kind, frame: Json) -> Answer<Option<Message>> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Ask { kind, frame, reply }).await;
        answer.await.unwrap_or_else(|_| not_connected())
    }

    async fn command(&self, command: Command) {
        // A device that ended takes none; whoever waits for an answer sees that its sender is gone.
        let _ = self.commands.send(command).await;
    }
}

pub(crate) fn not_connected<T>() -> Answer<T> {
    Answer::Refused { status: 0, code: "not_connected".to_owned() }
}
