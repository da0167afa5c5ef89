//! Budgets of requests: the size and the time of a body, the deadline, the rate. All routes of a
//! group have the same budget. [`super::router`] declares it once for the group, as a layer
//! ([`super::middleware::within`]).

use std::time::Duration;

use axum::http::Extensions;

use crate::model::limits::{BODY_BYTES_MAX, REQUEST_MAX, REQUEST_READ_MAX};
use crate::model::{Error, Result, UserId};
use crate::service::Budgets;

/// The budget of each request of a group of routes.
#[derive(Clone, Copy)]
pub(super) struct RouteBudget {
    /// Largest body, in bytes; a larger one is refused with `413`.
    pub body_bytes_max: usize,
    /// How long the client may take to send the body.
    pub body_read_max: Duration,
    /// How long the endpoint may take once the body has arrived; then the request is answered
    /// `503`.
    pub deadline: Duration,
    /// Counts one `GET` or `HEAD` of a user. The services count the other methods.
    pub count_read: fn(&Budgets, UserId) -> Result<()>,
}

/// The budget of the routes with JSON bodies, of the documents and of the WebSocket handshake.
pub(super) const JSON: RouteBudget = RouteBudget {
    body_bytes_max: BODY_BYTES_MAX,
    body_read_max: REQUEST_READ_MAX,
    deadline: REQUEST_MAX,
    count_read: Budgets::count_read,
};

impl RouteBudget {
    /// The budget of the group that a request's route belongs to.
    ///
    /// # Errors
    /// `internal` for a route without a group: a router was composed without a budget.
    pub fn of(extensions: &Extensions) -> Result<Self> {
        extensions.get::<Self>().copied().ok_or_else(|| Error::internal("this route has no budget"))
    }
}
