//! One connection, one task: reads frames, writes answers and events, and keeps the client's
//! heartbeat.
//!
//! The state of this task is the cost of an idle connection, so large futures are boxed while they
//! run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::Instant;

use super::answer::PendingAnswer;
use super::close::{close_frame, code_of_read_error};
use super::sync::in_time;
use super::{Arrival, Gateway, Turn};
use crate::hub::connection::TakeOutcome;
use crate::hub::{CloseReason, Connection};
use crate::metrics;
use crate::model::limits::{
    AUTHENTICATE_MAX, BAD_FRAMES_MAX, Bucket, CLOSE_MAX, FLOODED_FRAMES_MAX, FRAMES,
    INFLIGHT_FRAMES_MAX, WRITE_BATCH_BYTES_MAX, WRITE_MAX,
};
use crate::model::session::Caller;
use crate::model::{Code, Error};
use crate::wire::{ClientFrame, CloseCode, FrameId, Incoming, ServerFrame};

/// An authenticated connection.
pub(super) struct Live {
    pub gateway: Arc<Gateway>,
    pub caller: Caller,
    pub connection: Arc<Connection>,
    pub inflight: FuturesUnordered<PendingAnswer>,
    bad_frames: u32,
    flooded_frames: u32,
    bucket: Bucket,
}

/// The reason for which a connection's task wakes up.
enum Wake {
    Received(Option<Result<Message, axum::Error>>),
    Answered(Option<Bytes>),
    Queued,
    Silent,
}

/// Serves a connection from its handshake to its end.
pub(super) async fn run(gateway: Arc<Gateway>, mut socket: WebSocket, arrival: Arrival) {
    let authenticated = match arrival {
        Arrival::Known(caller, turn) => Ok((caller, None, turn)),
        Arrival::Nameless(guard) => {
            let authenticated = Box::pin(authenticate(&gateway, &mut socket)).await;
            if authenticated.is_ok() {
                guard.authenticated();
            }
            authenticated
        }
    };
    let code = match authenticated {
        Ok((caller, id, turn)) => {
            let number = gateway.connection_ids.fetch_add(1, Ordering::Relaxed);
            let connection =
                Connection::new(number, caller.user_id, caller.session_id, caller.logins);
            match Box::pin(let_in(&gateway, &connection, turn)).await {
                Ok(turn) => {
                    let mut live = Live {
                        gateway,
                        caller,
                        connection,
                        inflight: FuturesUnordered::new(),
                        bad_frames: 0,
                        flooded_frames: 0,
                        bucket: Bucket::default(),
                    };
                    let valid = live.still_valid().await;
                    drop(turn);
                    match valid {
                        Ok(()) => live.serve(&mut socket, id).await,
                        Err(code) => code,
                    }
                }
                Err(code) => code,
            }
        }
        Err(code) => code,
    };
    metrics::close_code(code.wire().0);
    Box::pin(say_goodbye(&mut socket, code)).await;
}

/// Takes a slot for a connection among those of its user. Returns the turn.
async fn let_in(
    gateway: &Gateway,
    connection: &Arc<Connection>,
    turn: Turn,
) -> Result<Turn, CloseCode> {
    let per_user_max = gateway.limits.connections_per_user_max;
    let mut let_in = gateway.hub.register(connection, per_user_max).await.map(|()| turn);
    let wait = gateway.hub.presence().slot_ttl();
    if matches!(let_in, Err(CloseReason::TooManyConnections)) && !wait.is_zero() {
        // A replica may just have died: its slots count until its lease expires, and its clients
        // come back here. Another newcomer uses the turn meanwhile.
        tokio::time::sleep(wait).await;
        let turn = in_time(gateway.turn()).await.map_err(|error| CloseCode::of_error(&error))?;
        let_in = gateway.hub.register(connection, per_user_max).await.map(|()| turn);
    }
    let_in.map_err(|reason| {
        if matches!(reason, CloseReason::TooManyConnections) {
            metrics::connection_refused("connections_per_user");
        }
        reason.into()
    })
}

/// Waits for the first frame of a client that the handshake did not authenticate.
async fn authenticate(
    gateway: &Gateway,
    socket: &mut WebSocket,
) -> Result<(Caller, Option<FrameId>, Turn), CloseCode> {
    let first = tokio::time::timeout(AUTHENTICATE_MAX, async {
        loop {
            let received = tokio::select! {
                received = socket.recv() => received,
                () = gateway.hub.draining() => return Err(CloseCode::Restarting),
            };
            match received {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => return Err(CloseCode::BadProtocol),
                Some(Ok(Message::Close(_))) | None => return Err(CloseCode::Normal),
                Some(Err(error)) => return Err(code_of_read_error(error)),
            }
        }
    })
    .await
    .map_err(|_| CloseCode::TimedOut)??;
    let incoming = Incoming::read(&first);
    let Ok(ClientFrame::Authenticate(frame)) = incoming.frame else {
        return Err(CloseCode::NotAuthenticated);
    };
    let arriving = async {
        let turn = gateway.turn().await?;
        Ok((gateway.arrive(&frame.token).await?, turn))
    };
    let (caller, turn) = in_time(arriving).await.map_err(|error| CloseCode::of_error(&error))?;
    Ok((caller, incoming.id, turn))
}

impl Drop for Live {
    /// Runs even after a panic, so that no user stays online without a connection.
    fn drop(&mut self) {
        self.gateway.hub.unregister(&self.connection);
    }
}

impl Live {
    /// Checks the session a second time. If it ended, or got another login, between the first check
    /// and the registration, no event closed this connection.
    async fn still_valid(&mut self) -> Result<(), CloseCode> {
        match self.gateway.services.sessions.logins(self.caller.session_id).boxed().await {
            Ok(logins) if self.connection.is_of(logins) => Ok(()),
            Ok(_) => Err(CloseCode::NotAuthenticated),
            Err(error) => Err(CloseCode::of_error(&error)),
        }
    }

    async fn serve(&mut self, socket: &mut WebSocket, id: Option<FrameId>) -> CloseCode {
        let ready = self.ready(id);
        if let Err(code) = self.write(socket, vec![ready]).await {
            return code;
        }

        let patience = self.gateway.limits.heartbeat_interval * 2;
        let mut last_received = Instant::now();
        let silence = tokio::time::sleep(patience);
        tokio::pin!(silence);

        loop {
            let has_room = self.inflight.len() < INFLIGHT_FRAMES_MAX;
            let waiting = Instant::now();
            let wake = tokio::select! {
                received = socket.recv(), if has_room => Wake::Received(received),
                Some(answer) = self.inflight.next(), if !self.inflight.is_empty() => Wake::Answered(answer),
                () = self.connection.woken() => Wake::Queued,
                () = &mut silence => Wake::Silent,
            };
            let working = Instant::now();
            if !has_room {
                last_received += working - waiting;
            }

            let mut out = Vec::new();
            let step = match wake {
                Wake::Received(received) => {
                    last_received = working;
                    self.receive(socket, received, &mut out).await
                }
                Wake::Answered(answer) => {
                    out.extend(answer);
                    // The event of the acknowledged work is about to arrive: one write for both.
                    tokio::task::yield_now().await;
                    Ok(())
                }
                Wake::Queued => Ok(()),
                Wake::Silent if last_received + patience <= Instant::now() => {
                    Err(CloseCode::TimedOut)
                }
                Wake::Silent => {
                    silence.as_mut().reset(last_received + patience);
                    Ok(())
                }
            };

            if let Err(code) = step {
                // The last answers, such as the error of a bad frame, come before the close.
                let _ = self.write(socket, out).await;
                return code;
            }
            if let Err(code) = self.write_all(socket, out).await {
                return code;
            }
            // While this task works, as on a long `sync`, pings wait in the socket: the client is
            // not silent.
            last_received += working.elapsed();
        }
    }

    fn ready(&self, id: Option<FrameId>) -> Bytes {
        let heartbeat = self.gateway.limits.heartbeat_interval;
        ServerFrame::Ready {
            id,
            session_id: self.caller.session_id,
            user_id: self.caller.user_id,
            heartbeat_interval_ms: u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX),
            server_time: self.gateway.clock.now(),
            epoch: self.gateway.services.sync.epoch(),
        }
        .encode()
    }

    /// Handles what was received. Immediate answers go to `out`.
    async fn receive(
        &mut self,
        socket: &mut WebSocket,
        received: Option<Result<Message, axum::Error>>,
        out: &mut Vec<Bytes>,
    ) -> Result<(), CloseCode> {
        let incoming = match received {
            Some(Ok(Message::Text(text))) => Incoming::read(&text),
            Some(Ok(Message::Binary(_))) => {
                let error =
                    Error::with_detail(Code::MalformedRequest, "frames are text, not binary");
                Incoming { id: None, frame: Err(error) }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(CloseCode::Normal),
            Some(Err(error)) => return Err(code_of_read_error(error)),
        };

        if let Err(retry_after_ms) = self.take_from_bucket() {
            out.push(super::answer::refusal(incoming.id, &Error::rate_limited(retry_after_ms)));
            self.flooded_frames += 1;
            return if self.flooded_frames >= FLOODED_FRAMES_MAX {
                Err(CloseCode::RateLimited)
            } else {
                Ok(())
            };
        }
        // Not reset to 0: the bucket accepts a frame now and then, however fast they come.
        self.flooded_frames = self.flooded_frames.saturating_sub(1);

        match incoming.frame {
            Ok(ClientFrame::Sync(frame)) => {
                self.bad_frames = 0;
                Box::pin(self.sync(socket, incoming.id, frame)).await
            }
            Ok(frame) => {
                self.bad_frames = 0;
                metrics::frame(frame.kind());
                out.extend(Box::pin(self.answer(incoming.id, frame)).await);
                Ok(())
            }
            Err(error) => {
                out.push(super::answer::refusal(incoming.id, &error));
                self.bad_frames += 1;
                if self.bad_frames >= BAD_FRAMES_MAX { Err(CloseCode::BadProtocol) } else { Ok(()) }
            }
        }
    }

    fn take_from_bucket(&mut self) -> Result<(), u64> {
        let gateway = &self.gateway;
        if gateway.limits.rate_limits {
            self.bucket.take(FRAMES, gateway.clock.now())
        } else {
            Ok(())
        }
    }

    /// Writes these frames, and all answers and events that are ready, until nothing is left.
    async fn write_all(
        &mut self,
        socket: &mut WebSocket,
        mut out: Vec<Bytes>,
    ) -> Result<(), CloseCode> {
        loop {
            while let Some(Some(answer)) = self.inflight.next().now_or_never() {
                out.extend(answer);
            }
            let taken = self.connection.take(&mut out, WRITE_BATCH_BYTES_MAX);
            let idle = out.is_empty();
            self.write(socket, std::mem::take(&mut out)).await?;
            match taken {
                TakeOutcome::Close(reason) => return Err(reason.into()),
                TakeOutcome::Open if idle => return Ok(()),
                TakeOutcome::Open => {}
            }
        }
    }

    /// Writes frames, then flushes once. A client that does not read them within [`WRITE_MAX`] is
    /// too slow.
    pub(super) async fn write(
        &mut self,
        socket: &mut WebSocket,
        frames: Vec<Bytes>,
    ) -> Result<(), CloseCode> {
        if frames.is_empty() {
            return Ok(());
        }
        if let Some(reason) = self.connection.cut_off() {
            return Err(reason.into());
        }

        let writing = async {
            for frame in frames {
                let text = Utf8Bytes::try_from(frame).map_err(|_| CloseCode::InternalError)?;
                socket.feed(Message::Text(text)).await.map_err(|_| CloseCode::Normal)?;
            }
            socket.flush().await.map_err(|_| CloseCode::Normal)
        };

        tokio::select! {
            biased;
            written = writing => written,
            () = self.connection.closing() => Err(self.closing_code()),
            () = tokio::time::sleep(WRITE_MAX) => Err(CloseCode::TooSlow),
        }
    }

    fn closing_code(&self) -> CloseCode {
        let mut rest = Vec::new();
        loop {
            if let TakeOutcome::Close(reason) = self.connection.take(&mut rest, usize::MAX) {
                return reason.into();
            }
        }
    }
}

/// Sends the close code and gives the client a moment to answer it. Frames that still arrive are
/// ignored.
pub(super) async fn say_goodbye(socket: &mut WebSocket, code: CloseCode) {
    let farewell = async {
        if socket.send(Message::Close(Some(close_frame(code)))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let patience = if code == CloseCode::Normal { Duration::from_millis(500) } else { CLOSE_MAX };
    let _ = tokio::time::timeout(patience, farewell).await;
}
