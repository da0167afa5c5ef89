//! A new connection: its authentication, and its connection slot.

use std::sync::Arc;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};

use super::close::code_of_read_error;
use super::state::{ArrivalPermit, Gateway, in_time};
use crate::hub::{CloseReason, Connection};
use crate::metrics;
use crate::model::limits::AUTHENTICATE_MAX;
use crate::model::session::Caller;
use crate::service::RequestGuard;
use crate::wire::{ClientFrame, CloseCode, FrameId, Incoming};

/// A client after the HTTP handshake.
pub(super) enum Arrival {
    /// The handshake carried a valid token.
    Authenticated(Caller, ArrivalPermit),
    /// The handshake carried no token. The connection counts against the limits of the client's
    /// address until its first frame.
    Anonymous(Arc<RequestGuard>),
}

/// A client whose token is valid.
pub(super) struct Authenticated {
    pub caller: Caller,
    /// The id of the `authenticate` frame, if there was one.
    pub frame_id: Option<FrameId>,
    pub permit: ArrivalPermit,
}

impl Arrival {
    /// Authenticates by the handshake's token, or else by the first frame.
    pub(super) async fn authenticate(
        self,
        gateway: &Gateway,
        socket: &mut WebSocket,
    ) -> Result<Authenticated, CloseCode> {
        let guard = match self {
            Self::Authenticated(caller, permit) => {
                return Ok(Authenticated { caller, frame_id: None, permit });
            }
            Self::Anonymous(guard) => guard,
        };

        let first = tokio::time::timeout(AUTHENTICATE_MAX, first_frame(gateway, socket))
            .await
            .map_err(|_| CloseCode::TimedOut)??;
        let incoming = Incoming::read(&first);
        let Ok(ClientFrame::Authenticate(frame)) = incoming.frame else {
            return Err(CloseCode::NotAuthenticated);
        };

        let authenticating = async {
            let permit = gateway.arrival_permit().await?;
            Ok((gateway.authenticate(&frame.token).await?, permit))
        };
        let (caller, permit) =
            in_time(authenticating).await.map_err(|error| CloseCode::of_error(&error))?;
        guard.authenticated();
        Ok(Authenticated { caller, frame_id: incoming.id, permit })
    }
}

/// Waits for the first text frame.
async fn first_frame(gateway: &Gateway, socket: &mut WebSocket) -> Result<Utf8Bytes, CloseCode> {
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
}

/// Registers a connection in one of its user's connection slots. Returns the permit, since the
/// session must be checked again before another arrival may use it.
pub(super) async fn register(
    gateway: &Gateway,
    connection: &Arc<Connection>,
    permit: ArrivalPermit,
) -> Result<ArrivalPermit, CloseCode> {
    let per_user_max = gateway.limits.connections_per_user_max;
    let mut registered = gateway.hub.register(connection, per_user_max).await.map(|()| permit);

    // If a replica died, its connections occupy slots until its lease expires, and its clients
    // reconnect here. So a refusal for lack of a slot is checked once more after that time. The
    // permit is free for other arrivals meanwhile.
    let wait = gateway.hub.presence().slot_ttl();
    if matches!(registered, Err(CloseReason::TooManyConnections)) && !wait.is_zero() {
        tokio::time::sleep(wait).await;
        let permit =
            in_time(gateway.arrival_permit()).await.map_err(|error| CloseCode::of_error(&error))?;
        registered = gateway.hub.register(connection, per_user_max).await.map(|()| permit);
    }

    registered.map_err(|reason| {
        if matches!(reason, CloseReason::TooManyConnections) {
            metrics::connection_refused("connections_per_user");
        }
        reason.into()
    })
}
