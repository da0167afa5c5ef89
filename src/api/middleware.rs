//! What happens around every request: its id, its metrics, its bounds, and what a panic means.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue, Method, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Api;
use super::extract::{FORWARDED_FOR, client_ip, is_in};
use crate::metrics;
use crate::model::Error;
use crate::model::id::RequestId;
use crate::model::limits::{BODY_BYTES_MAX, PROXY_WARNING_EVERY, REQUEST_MAX, REQUEST_READ_MAX};
use crate::service::Visit;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id of a client that is echoed.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// When a client comes back whose address holds too much.
const CROWDED_RETRY_MS: u64 = 1000;

/// Wraps the whole router.
pub fn around(router: Router, api: Arc<Api>) -> Router {
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(from_fn_with_state(api, observe))
}

async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, is_http1) = (known(request.method()), request.version() < Version::HTTP_2);
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let id = request_id(&request, &api);
    let mut response = match admit(&api, &request) {
        Ok(()) => answer(&api, request, next).await,
        Err(refused) => refused.into_response(),
    };
    let status = response.status().as_u16();
    metrics::request(method, &route, status, start.elapsed());
    tracing::debug!(method, route, status, ms = start.elapsed().as_millis(), "request");
    response.headers_mut().insert(REQUEST_ID, id);
    // Whoever kept the connection for the next request would find it closed in the middle of that. HTTP/2 has its own way.
    if is_http1 && api.is_draining() && status != 101 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Counts a request that comes through a proxy under its client's address until the client is known. The listener counts
/// the others.
fn admit(api: &Api, request: &Request) -> Result<(), Error> {
    let extensions = request.extensions();
    let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() else { return Ok(()) };
    if !is_in(peer.ip(), &api.trusted_proxies) {
        if request.headers().contains_key(FORWARDED_FOR) {
            warn_of_proxy(api);
        }
        return Ok(());
    }
    let client = client_ip(peer.ip(), request.headers(), &api.trusted_proxies);
    let Some(visit) = extensions.get::<Arc<Visit>>().filter(|_| !is_in(client, &api.trusted_proxies)) else {
        return Ok(());
    };
    match api.admission.enter(client) {
        Ok(place) => {
            visit.keep_place(place);
            Ok(())
        }
        Err(bound) => {
            metrics::request_refused(bound);
            Err(Error::rate_limited(CROWDED_RETRY_MS))
        }
    }
}

/// Says that the clients behind a proxy share its address, without the address: anyone can send the header.
fn warn_of_proxy(api: &Api) {
    metrics::proxy_untrusted();
    let now = api.service.clock().now().as_ms();
    let last = api.proxy_warned_at.load(Ordering::Relaxed);
    let pause = i64::try_from(PROXY_WARNING_EVERY.as_millis()).unwrap_or(i64::MAX);
    let due = now.saturating_sub(last) >= pause;
    if due && api.proxy_warned_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::warn!(
            "a request carries X-Forwarded-For, but its peer is not in trusted_proxies: if a proxy of yours sent it, all \
             of its clients share the limits of one address; name it in STARLING_TRUSTED_PROXIES"
        );
    }
}

/// Runs the endpoint, in a task of its own: it goes on to its end even if the client goes away or the answer takes too
/// long, so that nothing is committed and not announced, and no statement is broken off in the middle. A panic is a
/// `500`, and the process lives.
async fn answer(api: &Api, request: Request, next: Next) -> Response {
    let body_read = CancellationToken::new();
    let guard = body_read.clone().drop_guard();
    let request = request.map(|body| Body::new(WatchedBody { body, _read: guard }));
    let visit = request.extensions().get::<Arc<Visit>>().cloned().unwrap_or_default();
    let held = visit.clone();
    let working = next.run(request);
    let mut task = api.service.tasks().spawn(async move {
        let response = working.await;
        // Until here the work counts as its user's, whether or not the client still waits for it.
        drop(held);
        response
    });
    // The client's time to send its body is bounded where that is read; ours begins when it is there.
    let outcome = tokio::select! {
        outcome = &mut task => Ok(outcome),
        () = async {
            let _ = tokio::time::timeout(REQUEST_READ_MAX, body_read.cancelled()).await;
            // A body is read only once the user has a permit: that wait is part of the time.
            tokio::time::sleep(REQUEST_MAX.saturating_sub(visit.waited())).await;
        } => Err(Error::overloaded()),
    };
    match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Error::internal("an endpoint panicked").into_response(),
        Err(late) => late.into_response(),
    }
}

/// A body that tells when it has been read, or is not wanted.
struct WatchedBody {
    body: Body,
    _read: DropGuard,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's own id if it is sane, else a new one.
fn request_id(request: &Request, api: &Api) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
        !bytes.is_empty() && bytes.len() <= REQUEST_ID_BYTES_MAX && bytes.iter().all(allowed)
    };
    let given = request.headers().get(REQUEST_ID).filter(sane);
    given.cloned().unwrap_or_else(|| {
        let id = RequestId::new(api.service.clock().now(), &mut rand::rng());
        HeaderValue::from_str(&id.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
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
