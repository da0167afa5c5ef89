//! HTTP requests, their errors, and the listener's connections.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::model::Code;

const REQUESTS: &str = "starling_http_requests_total";
const REQUEST_SECONDS: &str = "starling_http_request_seconds";
const ERRORS: &str = "starling_errors_total";
const CONNECTIONS_REFUSED: &str = "starling_connections_refused_total";
const CONNECTIONS_CLOSED: &str = "starling_connections_closed_total";
const REQUESTS_REFUSED: &str = "starling_requests_refused_total";
const PROXIES_UNTRUSTED: &str = "starling_untrusted_proxy_requests_total";
const RATE_LIMITED: &str = "starling_rate_limited_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_counter!(
        REQUESTS,
        "HTTP requests, by method, route and status. It rises with the traffic; if the statuses \
         from 500 rise, the server or a dependency fails"
    );
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Time from a request's head to its response, by method and route. If it rises, the replica \
         is overloaded or the database is slow"
    );
    describe_counter!(
        ERRORS,
        "Errors sent to clients, by code and boundary (http, gateway). If internal or unavailable \
         rises, the log has the causes"
    );
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections refused because a bound was reached, by bound. If connections_max rises, this \
         replica is full; if another bound rises, one address or user opens too many connections"
    );
    describe_counter!(
        CONNECTIONS_CLOSED,
        "Connections that the listener closed, by reason (evicted, no_request, idle, \
         answer_stalled). If evicted or no_request rises, clients connect without sending a \
         request; if answer_stalled rises, clients do not read their answers"
    );
    describe_counter!(
        REQUESTS_REFUSED,
        "Requests refused because too many were in progress, by bound. If it rises, a client sends \
         too many requests at once"
    );
    describe_counter!(
        PROXIES_UNTRUSTED,
        "Requests with X-Forwarded-For from a peer that is not in trusted_proxies; limits count \
         them for the peer's address. If it rises, trusted_proxies lacks a load balancer, or a \
         client forges the header"
    );
    describe_counter!(
        RATE_LIMITED,
        "Requests and frames refused by a rate limit, by rate. If it rises, a client sends too \
         fast; if a rate of logins rises, passwords are being guessed"
    );
}

/// Records an answered HTTP request.
pub fn request(method: &'static str, route: &str, status: u16, took: Duration) {
    let route = route.to_owned();
    histogram!(REQUEST_SECONDS, "method" => method, "route" => route.clone())
        .record(took.as_secs_f64());

    let status = status.to_string();
    counter!(REQUESTS, "method" => method, "route" => route, "status" => status).increment(1);
}

/// Records an error that was sent to a client.
pub fn error(code: Code, at: &'static str) {
    counter!(ERRORS, "code" => code.as_str(), "at" => at).increment(1);
}

/// Records a connection that was refused because of this bound.
pub fn connection_refused(bound: &'static str) {
    counter!(CONNECTIONS_REFUSED, "bound" => bound).increment(1);
}

/// Records a connection that the listener closed for this reason.
pub fn connection_closed(reason: &'static str) {
    counter!(CONNECTIONS_CLOSED, "reason" => reason).increment(1);
}

/// Records a request that was refused because of this bound.
pub fn request_refused(bound: &'static str) {
    counter!(REQUESTS_REFUSED, "bound" => bound).increment(1);
}

/// Records a request that an untrusted proxy forwarded.
pub fn proxy_untrusted() {
    counter!(PROXIES_UNTRUSTED).increment(1);
}

/// Records a request or frame that this rate limit refused.
pub fn rate_limited(rate: &'static str) {
    counter!(RATE_LIMITED, "rate" => rate).increment(1);
}
