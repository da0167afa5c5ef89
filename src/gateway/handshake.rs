//! The HTTP part of a connection: the origin, the token, and the upgrade to a WebSocket.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, header};
use axum::response::Response;

use super::arrival::Arrival;
use super::connection;
use super::state::Gateway;
use crate::model::limits::{FRAME_BYTES_MAX, READ_BUFFER_BYTES};
use crate::model::{Code, Error, Result};
use crate::service::RequestGuard;
use crate::wire::SUBPROTOCOL;

/// The prefix of the subprotocol that carries a browser's token.
const BEARER: &str = "bearer.";

/// Answers `GET /ws`. A bad origin or token is refused with a status, anything later with a close
/// code.
///
/// # Errors
/// `malformed_request`, `origin_not_allowed`, `not_authenticated`, `rate_limited`, `unavailable`.
pub(super) async fn upgrade(
    gateway: Arc<Gateway>,
    guard: Arc<RequestGuard>,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    check_origin(headers, &gateway.allowed_origins)?;

    let arrival = match presented_token(headers)? {
        Some(token) => {
            let permit = gateway.arrival_permit().await?;
            let caller = gateway.authenticate(&token).await?;
            guard.authenticated();
            Arrival::Authenticated(caller, permit)
        }
        None => Arrival::Anonymous(guard),
    };

    let upgrade = upgrade
        .map_err(|rejection| Error::with_detail(Code::MalformedRequest, rejection.body_text()))?;
    Ok(configured(upgrade, FRAME_BYTES_MAX).protocols([SUBPROTOCOL]).on_upgrade(move |socket| {
        let tasks = gateway.tasks.clone();
        tasks.track(connection::run(gateway, socket, arrival))
    }))
}

/// Refuses a web page of another origin. Clients other than browsers send no `Origin` and are
/// accepted.
fn check_origin(headers: &HeaderMap, allowed_origins: &[String]) -> Result<()> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let refused = || Error::new(Code::OriginNotAllowed);
    let origin = origin.to_str().map_err(|_| refused())?;
    let own = headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(|host| {
        origin
            .strip_prefix("https://")
            .or(origin.strip_prefix("http://"))
            .is_some_and(|authority| authority == host)
    });
    let listed = allowed_origins.iter().any(|allowed| allowed == "*" || allowed == origin);
    if own || listed { Ok(()) } else { Err(refused()) }
}

/// Sets every buffer: the defaults suit few connections with large messages.
pub(super) fn configured(upgrade: WebSocketUpgrade, message_bytes_max: usize) -> WebSocketUpgrade {
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
