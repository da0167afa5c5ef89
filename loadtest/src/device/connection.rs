//! The task of a device: it connects, syncs, reads, and reconnects after the connection ended.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reading::{learn, recorded};
use super::reload::{Reload, reload};
use super::{Command, DeviceOptions, Known, Status, not_connected};
use crate::actor::{Actor, Pending};
use crate::client::{Answer, ConnectError, Incoming, Socket};
use crate::history::{DeviceEvent, DeviceLog, Stream, Value};
use crate::wire::{Frame, FrameKind, Message};

/// Interval of the checks for overdue answers and for silence.
const TICK: Duration = Duration::from_millis(250);
/// Heartbeat interval until `ready` names another.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Close code of an ended session.
const NOT_AUTHENTICATED: u16 = 4401;

/// A frame that waits for its answer.
struct Waiting {
    pending: Pending,
    reply: oneshot::Sender<Answer<Option<Message>>>,
    since: Instant,
}

/// Why a connection ended.
enum End {
    /// The run stopped the device.
    Stopped,
    /// The device reconnects, after this delay if the server asked for one.
    Again(Option<Duration>),
    /// The device does not reconnect.
    Refused(u16),
}

pub(super) struct Running {
    actor: Actor,
    options: DeviceOptions,
    log: DeviceLog,
    known: Known,
    status: watch::Sender<Status>,
    inbox: mpsc::Receiver<Command>,
    stop: CancellationToken,
    reloads: TaskTracker,
    rng: StdRng,
    connection: u32,
    frame_id: u64,
    waiting: HashMap<u64, Waiting>,
    /// The delay before the next connection that the server asked for.
    reconnect_delay: Option<Duration>,
    heartbeat: Duration,
    reading: bool,
    /// The epoch at the last `synced`, to which the known revisions belong.
    epoch: Option<String>,
    /// The epoch in the `ready` of the current connection.
    presented: Option<String>,
}

impl Running {
    pub(super) fn new(
        actor: Actor,
        options: DeviceOptions,
        log: DeviceLog,
        known: Known,
        status: watch::Sender<Status>,
        inbox: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) -> Self {
        let rng = StdRng::seed_from_u64(options.seed ^ u64::from(log.number()));

        Self {
            actor,
            options,
            log,
            known,
            status,
            inbox,
            stop,
            reloads: TaskTracker::new(),
            rng,
            connection: 0,
            frame_id: 0,
            waiting: HashMap::new(),
            reconnect_delay: None,
            heartbeat: HEARTBEAT,
            reading: true,
            epoch: None,
            presented: None,
        }
    }

    /// The tasks that load chats after a `reset`.
    pub(super) fn reloads(&self) -> TaskTracker {
        self.reloads.clone()
    }

    pub(super) async fn run(mut self) {
        let mut failures = 0;
        let ended = loop {
            self.connection += 1;
            let end = self.connect().await;
            // Answers to the frames of an ended connection never arrive.
            self.give_up(|_| true);
            let was_live = self.status.borrow().live;
            failures = if was_live { 0 } else { failures + 1 };
            self.status.send_modify(|status| status.live = false);
            match end {
                End::Stopped => break 0,
                End::Refused(code) => break code,
                End::Again(wait) => {
                    if !self.pause(wait, failures).await {
                        self.log.note(self.connection, DeviceEvent::Stopped);
                        break 0;
                    }
                }
            }
        };

        self.status.send_modify(|status| status.ended = Some(ended));
        self.reloads.close();
        self.reloads.wait().await;
    }

    /// Waits before the next connection and refuses commands meanwhile. Returns false on a stop.
    async fn pause(&mut self, wait: Option<Duration>, failures: u32) -> bool {
        let backoff = self
            .options
            .backoff
            .saturating_mul(1 << failures.min(10))
            .min(self.options.backoff_max);

        let wait = wait.unwrap_or_default() + backoff.mul_f64(self.rng.random_range(0.5..1.0));
        let wake = sleep(wait);
        tokio::pin!(wake);

        loop {
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = &mut wake => return true,
                Some(command) = self.inbox.recv() => self.refuse(command),
            }
        }
    }

    fn refuse(&mut self, command: Command) {
        match command {
            Command::Ask { reply, .. } => {
                let _ = reply.send(not_connected());
            }
            Command::Stall(stall) => self.stall(stall),
            Command::Send(_) | Command::Cut => {}
        }
    }

    fn stall(&mut self, stall: bool) {
        self.reading = !stall;
        self.log.note(self.connection, DeviceEvent::Stalled { reading: self.reading });
    }

    async fn connect(&mut self) -> End {
        let replica = self.options.replica + self.connection as usize - 1;
        let (base, token) =
            (self.actor.http().base(replica).to_owned(), self.actor.account().token.clone());

        let socket = tokio::select! {
            () = self.stop.cancelled() => {
                self.log.note(self.connection, DeviceEvent::Stopped);
                return End::Stopped;
            }
            socket = Socket::connect(&base, &token, self.options.socket) => socket,
        };

        let socket = match socket {
            Ok(socket) => socket,
            Err(ConnectError::Refused(401)) => {
                self.log.note(self.connection, DeviceEvent::Closed { code: NOT_AUTHENTICATED });
                return End::Refused(NOT_AUTHENTICATED);
            }
            Err(_) => return End::Again(None),
        };

        self.status.send_modify(|status| status.connections = self.connection);
        self.reconnect_delay = None;
        self.converse(socket).await
    }

    async fn converse(&mut self, mut socket: Socket) -> End {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let (mut received_at, mut pinged_at) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => {
                    self.log.note(self.connection, DeviceEvent::Stopped);
                    socket.close().await;
                    return End::Stopped;
                }
                incoming = socket.next(), if self.reading => {
                    received_at = Instant::now();
                    if let Some(end) = self.receive(&mut socket, incoming).await {
                        return end;
                    }
                }
                Some(command) = self.inbox.recv() => {
                    if !self.execute(&mut socket, command).await {
                        return self.cut();
                    }
                }
                _ = tick.tick() => {
                    self.give_up_overdue();

                    let silence_max = self.options.silence_max.unwrap_or(self.heartbeat * 2);
                    if self.reading && received_at.elapsed() > silence_max {
                        return self.cut();
                    }

                    if pinged_at.elapsed() >= self.heartbeat {
                        pinged_at = Instant::now();
                        if !socket.send(&json!({ "type": "ping" })).await && self.reading {
                            return self.cut();
                        }
                    }
                }
            }
        }
    }

    /// Records that this side dropped the connection or found it dead.
    fn cut(&self) -> End {
        self.log.note(self.connection, DeviceEvent::Closed { code: 0 });
        End::Again(None)
    }

    fn closed(&self, code: u16) -> End {
        self.log.note(self.connection, DeviceEvent::Closed { code });
        match code {
            4408 | 4413 | 4429 => End::Again(self.reconnect_delay),
            code if code >= 4000 => End::Refused(code),
            _ => End::Again(self.reconnect_delay),
        }
    }

    async fn receive(&mut self, socket: &mut Socket, incoming: Incoming) -> Option<End> {
        let frame = match incoming {
            Incoming::Frame(frame) => frame,
            Incoming::Garbage => {
                self.log.note(self.connection, DeviceEvent::Garbage);
                return None;
            }
            Incoming::Closed(code) => return Some(self.closed(code.unwrap_or(0))),
        };

        let told = recorded(self.actor.history(), &frame);
        // Recorded first, so that the record contains every revision that `known` shows.
        self.log.note(self.connection, told.clone());

        let before_reset = learn(&self.known, &told);
        match frame.kind {
            FrameKind::Ready => {
                self.presented = frame.epoch;
                self.heartbeat =
                    frame.heartbeat_interval_ms.map_or(HEARTBEAT, Duration::from_millis);
                if !self.sync(socket).await {
                    return Some(self.cut());
                }
            }
            FrameKind::Synced => {
                self.epoch.clone_from(&self.presented);
                self.status.send_modify(|status| status.live = true);
            }
            FrameKind::Reset => {
                // Revisions of another epoch are useless, so the chat is loaded from the beginning.
                let known = before_reset.filter(|_| self.epoch == self.presented).unwrap_or(0);
                self.begin_reload(frame, known);
            }
            FrameKind::Reconnect => {
                self.reconnect_delay = frame.after_ms.map(Duration::from_millis);
            }
            FrameKind::Ack | FrameKind::Error => self.answered(frame),
            _ => {}
        }

        None
    }

    async fn sync(&mut self, socket: &mut Socket) -> bool {
        let known: Box<[_]> = self.known.lock().iter().map(|(chat, rev)| (*chat, *rev)).collect();
        let history = self.actor.history();
        let chats: serde_json::Map<String, Json> =
            known.iter().map(|(chat, rev)| (history.word(*chat), json!(rev))).collect();
        self.log.note(self.connection, DeviceEvent::Sync(known));
        let mut frame = json!({ "type": "sync", "chats": chats });
        if let Some(epoch) = &self.epoch {
            frame["epoch"] = json!(epoch);
        }
        socket.send(&frame).await
    }

    fn begin_reload(&self, frame: Frame, after_rev: u32) {
        let (Some(chat_id), Some(until_rev)) = (frame.chat_id, frame.rev) else { return };
        let what = Reload { chat_id, after_rev, until_rev, connection: self.connection };
        self.reloads.spawn(reload(self.actor.clone(), self.log.clone(), what, self.stop.clone()));
    }

    /// Executes a command of the handle. Returns whether the connection is still usable.
    async fn execute(&mut self, socket: &mut Socket, command: Command) -> bool {
        match command {
            Command::Ask { kind, mut frame, reply } => {
                if !self.status.borrow().live {
                    let _ = reply.send(not_connected());
                    return true;
                }

                let stream = Stream { device: self.log.number(), connection: self.connection };
                let pending = self.actor.begin(Some(stream), kind);
                self.frame_id += 1;
                frame["id"] = json!(self.frame_id);
                self.waiting
                    .insert(self.frame_id, Waiting { pending, reply, since: Instant::now() });

                socket.send(&frame).await
            }
            Command::Send(frame) => socket.send(&frame).await,
            Command::Stall(stall) => {
                self.stall(stall);
                true
            }
            Command::Cut => false,
        }
    }

    fn answered(&mut self, frame: Frame) {
        let Some(Waiting { pending, reply, .. }) =
            frame.answers().and_then(|id| self.waiting.remove(&id))
        else {
            return;
        };

        let answer = match (frame.kind, frame.code) {
            (FrameKind::Ack, _) => Answer::Ok(frame.message),
            (_, Some(code)) if code != "unavailable" && code != "internal" => {
                Answer::Refused { status: 0, code }
            }
            _ => Answer::Unknown,
        };

        let value = |message: &Option<Message>| match message {
            Some(message) => Value::Message(self.actor.history().seen(message)),
            None => Value::Done,
        };

        pending.settle(self.actor.outcome(&answer, value));
        let _ = reply.send(answer);
    }

    fn give_up_overdue(&mut self) {
        let limit = self.actor.http().timeout();
        self.give_up(|waiting| waiting.since.elapsed() > limit);
    }

    /// Records an unknown outcome for these frames.
    fn give_up(&mut self, which: impl Fn(&Waiting) -> bool) {
        for (_, waiting) in self.waiting.extract_if(|_, waiting| which(waiting)) {
            drop(waiting.pending);
            let _ = waiting.reply.send(Answer::Unknown);
        }
    }
}
