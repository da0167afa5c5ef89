//! The WebSocket endpoint. The handshake is here; then each connection has one task
//! ([`connection`]), which reads frames, answers them ([`answer`]) and brings the client up to date
//! ([`sync`]). The frames and close codes are in [`wire`](crate::wire).

mod answer;
mod close;
mod connection;
mod sync;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::hub::Hub;
use crate::model::limits::{ARRIVALS_AT_ONCE_MAX, FRAME_BYTES_MAX, READ_BUFFER_BYTES};
use crate::model::session::Caller;
use crate::model::{Clock, Code, Error, Limits, Result};
use crate::service::{RequestGuard, Services};
use crate::tasks::Tasks;
use crate::wire::SUBPROTOCOL;

/// The subprotocol that carries a browser's token.
const BEARER: &str = "bearer.";

/// The turn of a newcomer, held until it is registered.
type Turn = OwnedSemaphorePermit;

/// The client of a handshake.
enum Arrival {
    /// It brought a token.
    Known(Caller, Turn),
    /// It brought none: the client counts for its address until its first frame.
    Nameless(Arc<RequestGuard>),
}

/// The state that all connections share.
pub struct Gateway {
    services: Arc<Services>,
    hub: Arc<Hub>,
    clock: Clock,
    limits: Limits,
    tasks: Tasks,
    connection_ids: AtomicU64,
    arrivals: Arc<Semaphore>,
    /// Origins of web pages that may connect, besides the server's own.
    allowed_origins: Vec<String>,
}

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
    gateway
        .upgrade(guard.map(|Extension(guard)| guard).unwrap_or_default(), &headers, upgrade)
        .await
}

/// The gateway's route.
pub fn router(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(ws)).with_state(gateway)
}

/// The gateway's part of the `OpenAPI` document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    OpenApiRouter::<Arc<Gateway>>::new().routes(routes!(ws)).into_openapi()
}

impl Gateway {
    /// A gateway that pages of `allowed_origins` may use; `*` stands for all.
    pub fn new(
        services: Arc<Services>,
        hub: Arc<Hub>,
        clock: Clock,
        limits: Limits,
        tasks: Tasks,
        allowed_origins: Vec<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            services,
            hub,
            clock,
            limits,
            tasks,
            connection_ids: AtomicU64::new(1),
            arrivals: Arc::new(Semaphore::new(ARRIVALS_AT_ONCE_MAX)),
            allowed_origins,
        })
    }

    /// Answers `GET /ws`: refuses a bad origin or token with a status, anything later with a close
    /// code.
    ///
    /// # Errors
    /// `malformed_request`, `origin_not_allowed`, `not_authenticated`, `rate_limited`,
    /// `unavailable`.
    async fn upgrade(
        self: Arc<Self>,
        guard: Arc<RequestGuard>,
        headers: &HeaderMap,
        upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    ) -> Result<Response> {
        self.check_origin(headers)?;
        let arrival = match presented_token(headers)? {
            Some(token) => {
                let turn = self.turn().await?;
                let caller = self.arrive(&token).await?;
                guard.authenticated();
                Arrival::Known(caller, turn)
            }
            None => Arrival::Nameless(guard),
        };
        let upgrade = upgrade.map_err(|rejection| {
            Error::with_detail(Code::MalformedRequest, rejection.body_text())
        })?;
        Ok(configured(upgrade, FRAME_BYTES_MAX)
            .protocols([SUBPROTOCOL])
            .on_upgrade(move |socket| self.serve(socket, arrival)))
    }

    fn serve(self: Arc<Self>, socket: WebSocket, arrival: Arrival) -> impl Future<Output = ()> {
        let tasks = self.tasks.clone();
        tasks.track(connection::run(self, socket, arrival))
    }

    /// Waits until a newcomer's turn comes.
    async fn turn(&self) -> Result<Turn> {
        self.arrivals.clone().acquire_owned().await.map_err(Error::internal)
    }

    /// The user behind a token, whose arrival is counted.
    async fn arrive(&self, token: &str) -> Result<Caller> {
        let caller = self.services.sessions.authenticate(token).await?;
        self.services.budgets.count_arrival(caller.user_id)?;
        Ok(caller)
    }

    /// Browsers name the page that connects; other clients name none and are accepted.
    fn check_origin(&self, headers: &HeaderMap) -> Result<()> {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return Ok(());
        };
        let refused = || Error::new(Code::OriginNotAllowed);
        let origin = origin.to_str().map_err(|_| refused())?;
        let own =
            headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(|host| {
                origin
                    .strip_prefix("https://")
                    .or(origin.strip_prefix("http://"))
                    .is_some_and(|authority| authority == host)
            });
        let listed = self.allowed_origins.iter().any(|allowed| allowed == "*" || allowed == origin);
        if own || listed { Ok(()) } else { Err(refused()) }
    }
}

/// Sets every buffer: the defaults suit few connections with large messages.
fn configured(upgrade: WebSocketUpgrade, message_bytes_max: usize) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        // No buffering: the connection's task batches by itself.
        .write_buffer_size(0)
        .max_write_buffer_size(usize::MAX)
        .max_message_size(message_bytes_max)
        .max_frame_size(message_bytes_max)
}

/// The token in the `Authorization` header or the subprotocols, if there is one.
fn presented_token(headers: &HeaderMap) -> Result<Option<String>> {
    let refused = || Error::new(Code::NotAuthenticated);
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| refused())?;
        let (scheme, token) = value.split_once(' ').ok_or_else(refused)?;
        return if scheme.eq_ignore_ascii_case("bearer") {
            Ok(Some(token.trim().to_owned()))
        } else {
            Err(refused())
        };
    }
    let offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let token = offered
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(BEARER));
    Ok(token.map(str::to_owned))
}

/// Echoes messages through the gateway's codec, for the conformance suite.
#[cfg(feature = "conformance")]
pub fn echo(upgrade: WebSocketUpgrade) -> Response {
    /// The suite sends up to 16 MiB.
    const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
    configured(upgrade, MESSAGE_BYTES_MAX).on_upgrade(|mut socket| async move {
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
                    connection::say_goodbye(&mut socket, code).await;
                    return;
                }
                None => return,
            }
        }
    })
}
