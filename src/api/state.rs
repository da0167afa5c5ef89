//! The state that the endpoints share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use ipnet::IpNet;

use crate::model::Clock;
use crate::service::{Admission, Services};
use crate::tasks::Tasks;

/// The state of the API's router.
pub struct Api {
    pub services: Arc<Services>,
    pub clock: Clock,
    /// Runs endpoints, so that they run to their end even if their client disconnects.
    pub tasks: Tasks,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the process is draining.
    pub draining: Arc<AtomicBool>,
    /// Counts the slots of the clients of trusted proxies.
    pub admission: Arc<Admission>,
    /// When the last warning about an untrusted proxy was logged, in milliseconds.
    pub proxy_warned_at: AtomicI64,
    /// Whether this replica has received nothing from the other replicas for a long time, although
    /// the bus works.
    pub is_deaf: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Api {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
