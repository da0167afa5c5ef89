//! What happens around every request: its id, its metrics, its budget, and the answer to a panic.

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
/// Longest request id of a client that is echoed, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// `Retry-After` for a client whose address holds too many slots, in milliseconds.
const CROWDED_RETRY_MS: u64 = 1000;

/// Observes and admits the requests of all groups.
pub(super) fn observed(router: Router, api: Arc<Api>) -> Router {
    router.layer(from_fn_with_state(api, observe))
}

/// Gives every route of a group this budget, its fallback included.
pub(super) fn within(budget: RouteBudget, group: Router, api: &Arc<Api>) -> Router {
    group
        .layer(from_fn_with_state((api.clone(), budget), run))
        .layer(DefaultBodyLimit::max(budget.body_bytes_max))
        .layer(Extension(budget))
}

async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, is_http1) = (known(request.method()), request.version() < Version::HTTP_2);
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
    // A client that keeps the connection would find it closed in the middle of its next request.
    // HTTP/2 has its own way to announce the end.
    if is_http1 && api.is_draining() && status != 101 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Counts a request that comes through a proxy against its client's address until the client has
/// authenticated. The listener counts the other requests.
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

/// Warns that the clients behind a proxy share its address. The log line does not contain the
/// address, because any client can send the header.
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
            "a request carries X-Forwarded-For, but its peer is not in trusted_proxies: if a proxy of yours sent it, all \
             of its clients share the limits of one address; name it in STARLING_TRUSTED_PROXIES"
        );
    }
}

/// Runs the endpoint in a task of its own. The task runs to its end even if the client goes away or
/// the deadline passes, so that every commit is announced and no statement is interrupted. A panic
/// in it is answered `500`, and the process lives.
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
        // Until here the work counts as its user's, whether or not the client still waits for it.
        drop(held);
        response
    });

    // The extractor bounds the client's time to send its body. The server's time begins after that.
    let outcome = tokio::select! {
        outcome = &mut task => Ok(outcome),
        () = async {
            let _ = tokio::time::timeout(budget.body_read_max, body_read.cancelled()).await;
            // A body is read only once the user has a permit, so the wait for it is part of the
            // time.
            tokio::time::sleep(budget.deadline.saturating_sub(guard.waited())).await;
        } => Err(Error::overloaded()),
    };
    match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Error::internal("an endpoint panicked").into_response(),
        Err(late) => late.into_response(),
    }
}

/// A body that cancels a token when it has been read to its end or dropped.
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

/// The client's own id for the request if it is well-formed, else a new one.
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

fn known(method: &Method) -> &'static str {
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
