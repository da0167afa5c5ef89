//! One connection, one task: it reads frames, writes answers and events, and closes a silent
//! connection.
//!
//! The size of this task's state is the memory of an idle connection. So large futures are boxed
//! while they run.

use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::answer::refusal;
use super::arrival::{self, Arrival};
use super::close::{close, code_of_read_error};
use super::live::LiveConnection;
use super::state::Gateway;
use crate::hub::Connection;
use crate::metrics;
use crate::model::limits::{BAD_FRAMES_MAX, FLOODED_FRAMES_MAX, FRAMES, INFLIGHT_FRAMES_MAX};
use crate::model::{Code, Error};
use crate::wire::{ClientFrame, CloseCode, FrameId, Incoming, ServerFrame};

/// The reason for which a connection's task wakes up.
enum Wake {
    Received(Option<Result<Message, axum::Error>>),
    Answered(Option<Bytes>),
    Queued,
    Silent,
}

/// Serves a connection from its handshake to its end.
pub(super) async fn run(gateway: Arc<Gateway>, mut socket: WebSocket, arrival: Arrival) {
    let code = match Box::pin(enter(gateway, &mut socket, arrival)).await {
        Ok((mut live, frame_id)) => live.serve(&mut socket, frame_id).await,
        Err(code) => code,
    };
    metrics::close_code(code.wire().0);
    Box::pin(close(&mut socket, code)).await;
}

/// Authenticates and registers a connection.
async fn enter(
    gateway: Arc<Gateway>,
    socket: &mut WebSocket,
    arrival: Arrival,
) -> Result<(LiveConnection, Option<FrameId>), CloseCode> {
    let arrival::Authenticated { caller, frame_id, permit } =
        arrival.authenticate(&gateway, socket).await?;

    let id = gateway.next_connection_id();
    let connection = Connection::new(id, caller.user_id, caller.session_id, caller.logins);
    let permit = arrival::register(&gateway, &connection, permit).await?;

    // From here on, dropping the connection unregisters it.
    let mut live = LiveConnection::new(gateway, caller, connection);
    live.check_session().await?;
    drop(permit);
    Ok((live, frame_id))
}

impl LiveConnection {
    /// Checks the session a second time. If the session ended or got another login after the first
    /// check and before the registration, then no event closed this connection.
    async fn check_session(&mut self) -> Result<(), CloseCode> {
        match self.gateway.services.sessions.logins(self.caller.session_id).boxed().await {
            Ok(logins) if self.connection.is_of_current_login(logins) => Ok(()),
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
                Some(answer) = self.inflight.next(), if !self.inflight.is_empty() => {
                    Wake::Answered(answer)
                }
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
            out.push(refusal(incoming.id, &Error::rate_limited(retry_after_ms)));
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
                out.push(refusal(incoming.id, &error));
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
}
