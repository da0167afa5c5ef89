//! Probes: whether the process lives, and whether it should get traffic.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::state::Api;
use crate::model::Error;

/// The process lives. Looks at nothing outside of it: restarting a replica does not mend a database.
#[utoipa::path(get, path = "/livez", tag = "service", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn livez() -> &'static str {
    "ok"
}

/// The replica can serve: not about to stop, its database answered when it was last asked, and it hears the others if there
/// is anything to hear them by. The database is asked once a second, however often this is. That Redis is away is no
/// reason: then all replicas serve without it.
#[utoipa::path(get, path = "/readyz", tag = "service", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn readyz(State(api): State<Arc<Api>>) -> Response {
    if api.is_draining() || (api.is_deaf)() {
        return Error::overloaded().into_response();
    }
    match api.services.health.check() {
        Ok(()) => (StatusCode::OK, "ok").into_response(),
        Err(error) => error.into_response(),
    }
}

/// The internal port: metrics, and the probes again.
pub fn internal_router(api: Arc<Api>, render_metrics: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(move || async move { render_metrics() }))
        .with_state(api)
}
