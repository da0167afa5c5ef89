//! The HTTP API. Each resource has a file, and each endpoint a function, which extracts its
//! arguments, calls one service and responds. One declaration makes a route and its documentation,
//! so the `OpenAPI` document matches the router.

mod budget;
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
mod state;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::model::{Code, Error};

pub use probes::internal_router;
pub use state::Api;

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

/// The `OpenAPI` document, including the routes of `more`.
pub fn openapi(more: OpenApi) -> OpenApi {
    docs::finished(resources().into_openapi().merge_from(more))
}

/// The public router. `more` has the routes of other modules and their documentation; `asyncapi` is
/// the gateway's document.
pub fn router(api: Arc<Api>, more: OpenApiRouter, asyncapi: String) -> Router {
    let (more, more_doc) = more.split_for_parts();
    let (resources, doc) = resources().split_for_parts();
    let doc = docs::finished(doc.merge_from(more_doc));

    let json = resources
        .with_state(api.clone())
        .merge(more)
        .merge(docs::router(&doc, asyncapi))
        // A browser is redirected to the API documentation, which can also register an account.
        .route("/", get(|| async { Redirect::temporary("/docs/") }))
        .route("/join", get(|| async { Redirect::temporary("/docs/") }))
        .fallback(|| async { Error::new(Code::RouteNotFound) })
        .method_not_allowed_fallback(|| async { Error::new(Code::MethodNotAllowed) });

    // Each group of routes has one budget. There is one group so far.
    let groups = middleware::within(budget::JSON, json, &api);
    middleware::observed(groups, api)
}
