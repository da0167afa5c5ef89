//! The HTTP API: one file a resource, each endpoint extract → service → respond. Routes and their documentation are the
//! same declarations, so the `OpenAPI` document can't drift from the router.

mod chats;
mod docs;
mod extract;
mod invites;
mod members;
mod messages;
mod middleware;
mod probes;
mod problem;
mod sessions;
mod users;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use ipnet::IpNet;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::model::{Code, Error};
use crate::service::{Admission, Health, Service};

pub use probes::internal_router;
pub use problem::Problem;

/// What the endpoints share.
pub struct Api {
    /// The rules.
    pub service: Arc<Service>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the process is about to stop.
    pub draining: Arc<AtomicBool>,
    /// Whether the database answers.
    pub health: Arc<Health>,
    /// Counts what the clients of trusted proxies hold without a login.
    pub admission: Arc<Admission>,
    /// When a proxy that is not trusted was last warned of, in milliseconds.
    pub proxy_warned_at: AtomicI64,
    /// Whether this replica has not heard the others for long, though it could.
    pub is_deaf: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Api {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

fn resources() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(docs::base())
        .routes(routes!(invites::create, invites::list))
        .routes(routes!(invites::show, invites::revoke))
        .routes(routes!(users::register, users::directory))
        .routes(routes!(users::me, users::change, users::remove))
        .routes(routes!(users::show))
        .routes(routes!(sessions::log_in, sessions::list, sessions::end_others))
        .routes(routes!(sessions::refresh))
        .routes(routes!(sessions::current, sessions::log_out))
        .routes(routes!(sessions::end))
        .routes(routes!(chats::inbox, chats::create))
        .routes(routes!(chats::show, chats::rename, chats::remove))
        .routes(routes!(chats::changes))
        .routes(routes!(chats::mark_read))
        .routes(routes!(members::list, members::add))
        .routes(routes!(members::change, members::remove))
        .routes(routes!(messages::history, messages::send))
        .routes(routes!(messages::show, messages::edit, messages::remove))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
}

/// The `OpenAPI` document, with the routes of `more` in it.
pub fn openapi(more: OpenApi) -> OpenApi {
    docs::finished(resources().into_openapi().merge_from(more))
}

/// The public router. `more` brings the routes that other modules serve, with their documentation; `asyncapi` is the
/// gateway's document.
pub fn router(api: Arc<Api>, more: OpenApiRouter, asyncapi: String) -> Router {
    let (more, more_doc) = more.split_for_parts();
    let (router, doc) = resources().split_for_parts();
    let doc = docs::finished(doc.merge_from(more_doc));
    let router = router
        .with_state(api.clone())
        .merge(more)
        .merge(docs::router(&doc, asyncapi))
        // Where a browser ends up until there is a page for people: at the API, which can also register.
        .route("/", get(|| async { Redirect::temporary("/docs/") }))
        .route("/join", get(|| async { Redirect::temporary("/docs/") }))
        .fallback(|| async { Error::new(Code::RouteNotFound) })
        .method_not_allowed_fallback(|| async { Error::new(Code::MethodNotAllowed) });
    middleware::around(router, api)
}
