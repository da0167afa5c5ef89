//! A device: one session on one socket. It reconnects as a good client does, and records every
//! frame that it receives.

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

/// Maximum number of commands in the queue of the device's task.
const COMMANDS_MAX: usize = 64;

/// Options of a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Index of the first replica. Each reconnect goes to the next replica.
    pub replica: usize,
    /// Options of each connection.
    pub socket: SocketOptions,
    /// The first delay before a reconnect. It doubles with each failure and is jittered.
    pub backoff: Duration,
    /// The longest delay before a reconnect.
    pub backoff_max: Duration,
    /// A connection without a frame for this long counts as dead. The default is two heartbeat
    /// intervals.
    pub silence_max: Option<Duration>,
    /// Seed of the jitter.
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

/// The state of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Number of connections so far.
    pub connections: u32,
    /// Whether the device is synced and receives live events.
    pub live: bool,
    /// Once the device ended: the close code, such as 4401, or 0 if it was stopped.
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

/// The last known revision of each chat.
pub(crate) type Known = Arc<Mutex<HashMap<Name, u32>>>;

#[derive(Debug)]
pub(crate) enum Command {
    /// Send a frame, recorded as `kind`, and wait for its answer.
    Ask { kind: Kind, frame: Json, reply: oneshot::Sender<Answer<Option<Message>>> },
    /// Send a frame that has no answer.
    Send(Json),
    /// Stop reading (`true`) or resume it.
    Stall(bool),
    /// Drop the connection without a close frame, then reconnect.
    Cut,
}

impl Device {
    /// Starts a device. It runs until `stop`, or until a close code forbids a reconnect.
    pub fn start(
        actor: Actor,
        options: DeviceOptions,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let log = actor.history().device(actor.user(), actor.session());
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (status_sender, status) = watch::channel(Status::default());
        let known = Known::default();

        let running = connection::Running::new(
            actor.clone(),
            options,
            log.clone(),
            known.clone(),
            status_sender,
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

    /// The device's user.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The device's index in the record.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The current state of the device.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// The last revision of a chat that the device has.
    pub fn known(&self, chat: Name) -> Option<u32> {
        self.known.lock().get(&chat).copied()
    }

    /// Whether the device is loading a chat after a `reset`.
    pub fn is_reloading(&self) -> bool {
        !self.reloads.is_empty()
    }

    /// Waits until the device is live. Returns whether it was within `limit`.
    pub async fn until_live(&self, limit: Duration) -> bool {
        self.until(limit, |status| status.live).await
    }

    /// Waits until the device ended. Returns whether it did within `limit`.
    pub async fn until_ended(&self, limit: Duration) -> bool {
        self.until(limit, |status| status.ended.is_some()).await
    }

    async fn until(&self, limit: Duration, holds: impl FnMut(&Status) -> bool) -> bool {
        let mut status = self.status.clone();
        matches!(tokio::time::timeout(limit, status.wait_for(holds)).await, Ok(Ok(_)))
    }

    /// Waits until the device has a chat up to `rev`. Returns whether it did within `limit`.
    pub async fn until_known(&self, chat: Name, rev: u32, limit: Duration) -> bool {
        let waiting = async {
            while self.known(chat).is_none_or(|known| known < rev) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }

    /// Sends a message on the socket. While the device is not live, the answer is the refusal
    /// `not_connected`, and nothing is recorded.
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
        let frame = json!({
            "type": "edit_message", "chat_id": chat, "message_id": message_id, "text": text,
        });
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

    /// Moves the user's read marker on the socket.
    pub async fn mark_read(&self, chat: &str, message_id: u32) -> Answer<Option<Message>> {
        let kind = Kind::MarkRead { chat: self.actor.history().name(chat), message_id };
        self.ask(kind, json!({ "type": "read", "chat_id": chat, "message_id": message_id })).await
    }

    /// Sends `typing` for a chat.
    pub async fn typing(&self, chat: &str) {
        self.command(Command::Send(json!({ "type": "typing", "chat_id": chat }))).await;
    }

    /// Watches the presence of these users. A reconnect ends the watch.
    pub async fn watch_presence(&self, user_ids: &[&str]) {
        self.command(Command::Send(json!({ "type": "watch_presence", "user_ids": user_ids })))
            .await;
    }

    /// Stops reading, as a hung client would. Heartbeats continue.
    pub async fn stall(&self) {
        self.command(Command::Stall(true)).await;
    }

    /// Resumes reading.
    pub async fn unstall(&self) {
        self.command(Command::Stall(false)).await;
    }

    /// Drops the connection without a close frame. The device reconnects.
    pub async fn cut(&self) {
        self.command(Command::Cut).await;
    }

    async fn ask(&self, kind: Kind, frame: Json) -> Answer<Option<Message>> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Ask { kind, frame, reply }).await;
        answer.await.unwrap_or_else(|_| not_connected())
    }

    async fn command(&self, command: Command) {
        // A device that ended drops the command, and with it the sender of the answer.
        let _ = self.commands.send(command).await;
    }
}

pub(crate) fn not_connected<T>() -> Answer<T> {
    Answer::Refused { status: 0, code: "not_connected".to_owned() }
}
