//! The state that the endpoints share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use ipnet::IpNet;

use crate::model::Clock;
use crate::service::{Admission, Services};
use crate::tasks::Tasks;

/// What the endpoints share.
pub struct Api {
    /// The rules.
    pub services: Arc<Services>,
    /// The time.
    pub clock: Clock,
    /// Runs requests, so that they end even if their client goes away.
    pub tasks: Tasks,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the process is about to stop.
    pub draining: Arc<AtomicBool>,
    /// Counts the slots of the clients of trusted proxies.
    pub admission: Arc<Admission>,
    /// When the last warning about a proxy that is not trusted was logged, in milliseconds.
    pub proxy_warned_at: AtomicI64,
    /// Whether this replica has received nothing from the other replicas for long, although the bus
    /// works.
    pub is_deaf: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Api {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
