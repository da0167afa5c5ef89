//! Probes: whether the process runs, and whether it should get traffic.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::state::Api;
use crate::model::Error;

/// Liveness: the process runs.
///
/// Checks nothing outside of the process, because a restart would not repair the database.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "service",
    security(()),
    responses((status = 200, body = String, content_type = "text/plain")),
)]
pub async fn livez() -> &'static str {
    "ok"
}

/// Readiness: the replica can serve requests.
///
/// The replica is not draining, its database answered the latest ping, and it receives the events
/// of the other replicas if the bus works. It pings the database once a second, regardless of the
/// number of probes. It stays ready while Redis is down, because all replicas then serve without
/// it.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "service",
    security(()),
    responses((status = 200, body = String, content_type = "text/plain")),
)]
pub async fn readyz(State(api): State<Arc<Api>>) -> Response {
    if api.is_draining() || (api.is_deaf)() {
        return Error::overloaded().into_response();
    }
    match api.services.health.check() {
        Ok(()) => (StatusCode::OK, "ok").into_response(),
        Err(error) => error.into_response(),
    }
}

/// The router of the internal port: the metrics and the probes.
pub fn internal_router(
    api: Arc<Api>,
    render_metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(move || async move { render_metrics() }))
        .with_state(api)
}
