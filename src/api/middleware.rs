//! Layers around every request: its id, metrics, admission, budget, and the answer to a panic.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue, Method, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::budget::RouteBudget;
use super::extract::{FORWARDED_FOR, client_ip, is_in};
use super::state::Api;
use crate::metrics;
use crate::model::Error;
use crate::model::id::RequestId;
use crate::model::limits::PROXY_WARNING_EVERY;
use crate::service::RequestGuard;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id from a client that is echoed, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// `Retry-After` for a client whose address holds too many slots, in milliseconds.
const CROWDED_RETRY_MS: u64 = 1000;

/// Measures and admits the requests of all groups.
pub(super) fn observed(router: Router, api: Arc<Api>) -> Router {
    router.layer(from_fn_with_state(api, observe))
}

/// Gives this budget to every route of a group and to its fallback.
pub(super) fn within(budget: RouteBudget, group: Router, api: &Arc<Api>) -> Router {
    group
        .layer(from_fn_with_state((api.clone(), budget), run))
        .layer(DefaultBodyLimit::max(budget.body_bytes_max))
        .layer(Extension(budget))
}

async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, is_http1) = (method_label(request.method()), request.version() < Version::HTTP_2);
    let route =
        request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let id = request_id(&request, &api);

    let mut response = match admit(&api, &request) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };

    let status = response.status().as_u16();
    metrics::request(method, &route, status, start.elapsed());
    tracing::debug!(method, route, status, ms = start.elapsed().as_millis(), "request");
    response.headers_mut().insert(REQUEST_ID, id);

    // Otherwise the connection could close during the client's next request. HTTP/2 announces the
    // end by a frame of its own.
    if is_http1 && api.is_draining() && status != 101 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Counts a request through a trusted proxy against its client's address until the client has
/// authenticated. The listener counts direct connections.
fn admit(api: &Api, request: &Request) -> Result<(), Error> {
    let extensions = request.extensions();
    let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() else {
        return Ok(());
    };

    if !is_in(peer.ip(), &api.trusted_proxies) {
        if request.headers().contains_key(FORWARDED_FOR) {
            warn_of_proxy(api);
        }
        return Ok(());
    }

    let client = client_ip(peer.ip(), request.headers(), &api.trusted_proxies);
    let guard = extensions.get::<Arc<RequestGuard>>();
    let Some(guard) = guard.filter(|_| !is_in(client, &api.trusted_proxies)) else {
        return Ok(());
    };

    match api.admission.enter(client) {
        Ok(slot) => {
            guard.keep_slot(slot);
            Ok(())
        }
        Err(bound) => {
            metrics::request_refused(bound);
            Err(Error::rate_limited(CROWDED_RETRY_MS))
        }
    }
}

/// Warns, at most once in [`PROXY_WARNING_EVERY`], of a proxy that may be missing from the
/// configuration. The log line does not contain the peer's address, because any client can send the
/// header.
fn warn_of_proxy(api: &Api) {
    metrics::proxy_untrusted();

    let now = api.clock.now().as_ms();
    let last = api.proxy_warned_at.load(Ordering::Relaxed);
    let pause = i64::try_from(PROXY_WARNING_EVERY.as_millis()).unwrap_or(i64::MAX);
    let due = now.saturating_sub(last) >= pause;

    if due
        && api
            .proxy_warned_at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        tracing::warn!(
            "ignored X-Forwarded-For from a peer that is not a trusted proxy; if the peer is your \
             proxy, all its clients share the limits of one address: add it to \
             STARLING_TRUSTED_PROXIES"
        );
    }
}

/// Runs the endpoint in its own task. The task runs to its end even if the client disconnects or
/// the deadline passes, so that the events of every commit are published and no statement is
/// interrupted. A panic in the task is answered `500` and does not end the process.
async fn run(
    State((api, budget)): State<(Arc<Api>, RouteBudget)>,
    request: Request,
    next: Next,
) -> Response {
    let body_read = CancellationToken::new();
    let read = body_read.clone().drop_guard();
    let request = request.map(|body| Body::new(WatchedBody { body, _read: read }));
    let guard = request.extensions().get::<Arc<RequestGuard>>().cloned().unwrap_or_default();

    let held = guard.clone();
    let working = next.run(request);
    let mut task = api.tasks.spawn(async move {
        let response = working.await;
        // The task holds the user's permit until here, even after the client disconnected.
        drop(held);
        response
    });

    // The deadline starts once the body has arrived. The extractor bounds the time for the body.
    let outcome = tokio::select! {
        outcome = &mut task => Ok(outcome),
        () = async {
            let _ = tokio::time::timeout(budget.body_read_max, body_read.cancelled()).await;
            // The user's permit is awaited before the body is read. This wait counts against the
            // deadline.
            tokio::time::sleep(budget.deadline.saturating_sub(guard.waited())).await;
        } => Err(Error::overloaded()),
    };

    match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Error::internal("an endpoint panicked").into_response(),
        Err(late) => late.into_response(),
    }
}

/// A body that cancels a token when it is dropped, whether or not it was read.
struct WatchedBody {
    body: Body,
    _read: DropGuard,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's id for the request if it is well-formed, else a new id.
fn request_id(request: &Request, api: &Api) -> HeaderValue {
    let is_well_formed = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
        !bytes.is_empty() && bytes.len() <= REQUEST_ID_BYTES_MAX && bytes.iter().all(allowed)
    };

    let given = request.headers().get(REQUEST_ID).filter(is_well_formed);
    given.cloned().unwrap_or_else(|| {
        let id = RequestId::new(api.clock.now(), &mut rand::rng());
        HeaderValue::from_str(&id.to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

/// The method as a metric label. Unknown methods share a label, so that clients can't create
/// labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
