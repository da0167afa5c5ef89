//! The state that all connections of this replica share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::hub::Hub;
use crate::model::limits::{ARRIVALS_AT_ONCE_MAX, REQUEST_MAX};
use crate::model::session::Caller;
use crate::model::{Clock, Error, Limits, Result};
use crate::service::Services;
use crate::tasks::Tasks;

/// The permit of a new connection. It is held from the check of the token until the connection is
/// registered.
pub(super) type ArrivalPermit = OwnedSemaphorePermit;

/// The state that all connections share.
pub struct Gateway {
    pub(super) services: Arc<Services>,
    pub(super) hub: Arc<Hub>,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
    pub(super) tasks: Tasks,
    /// Origins of web pages that may connect, besides the server's own.
    pub(super) allowed_origins: Vec<String>,
    connection_ids: AtomicU64,
    arrivals: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway that pages of `allowed_origins` may use; `*` stands for all.
    pub fn new(
        services: Arc<Services>,
        hub: Arc<Hub>,
        clock: Clock,
        limits: Limits,
        tasks: Tasks,
        allowed_origins: Vec<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            services,
            hub,
            clock,
            limits,
            tasks,
            allowed_origins,
            connection_ids: AtomicU64::new(1),
            arrivals: Arc::new(Semaphore::new(ARRIVALS_AT_ONCE_MAX)),
        })
    }

    /// An id that no other connection of this replica has had.
    pub(super) fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for one of the [`ARRIVALS_AT_ONCE_MAX`] permits.
    pub(super) async fn arrival_permit(&self) -> Result<ArrivalPermit> {
        self.arrivals.clone().acquire_owned().await.map_err(Error::internal)
    }

    /// Authenticates the token of a new connection and counts it against the user's budget.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Caller> {
        let caller = self.services.sessions.authenticate(token).await?;
        self.services.budgets.count_arrival(caller.user_id)?;
        Ok(caller)
    }
}

/// Bounds a step by [`REQUEST_MAX`], including its wait for a permit, so that the client gets an
/// answer before its own timeout.
pub(super) async fn in_time<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(REQUEST_MAX, step)
        .await
        .unwrap_or_else(|elapsed| Err(Error::unavailable(elapsed)))
}
