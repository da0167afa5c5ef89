//! The WebSocket endpoint.
//!
//! [`handshake`] upgrades a request, [`arrival`] authenticates and registers the connection. Then
//! each connection has one task ([`connection`]), which reads frames, does their work
//! ([`dispatch`]), and sends what the client missed ([`sync`]). The frames and close codes are in
//! [`wire`](crate::wire).

mod answer;
mod arrival;
mod close;
mod connection;
mod dispatch;
mod handshake;
mod live;
mod state;
mod sync;

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::model::Result;
use crate::service::RequestGuard;

pub use state::Gateway;

/// Opens the event stream and command channel. Its frames are described by `/asyncapi.json`.
#[utoipa::path(get, path = "/ws", tag = "gateway", security((), ("bearer" = [])), responses(
    (status = 101, description = "WebSocket, subprotocol `starling.v1`"),
    (status = 401, description = "The token in the header or subprotocol is not valid"),
    (status = 403, description = "The request comes from a page of another origin")))]
async fn ws(
    State(gateway): State<Arc<Gateway>>,
    guard: Option<Extension<Arc<RequestGuard>>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let guard = guard.map(|Extension(guard)| guard).unwrap_or_default();
    handshake::upgrade(gateway, guard, &headers, upgrade).await
}

/// The gateway's route.
pub fn router(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(ws)).with_state(gateway)
}

/// The gateway's part of the `OpenAPI` document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    OpenApiRouter::<Arc<Gateway>>::new().routes(routes!(ws)).into_openapi()
}

/// Echoes messages through the gateway's codec, for the conformance suite.
#[cfg(feature = "conformance")]
pub fn echo(upgrade: WebSocketUpgrade) -> Response {
    /// The suite sends up to 16 MiB.
    const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
    handshake::configured(upgrade, MESSAGE_BYTES_MAX).on_upgrade(|mut socket| async move {
        use axum::extract::ws::Message;
        loop {
            match socket.recv().await {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    let code = close::code_of_read_error(error);
                    close::close(&mut socket, code).await;
                    return;
                }
                None => return,
            }
        }
    })
}
