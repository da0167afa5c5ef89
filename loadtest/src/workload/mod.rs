//! Users and what they do. Everything is seeded, bounded, recorded, and stops when told to.

mod community;
mod final_log;
mod membership;
mod reading;
mod sessions;
mod sockets;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use community::{Community, accounts_of_json_lines};
pub use final_log::read_final_log;
pub use membership::churn_membership;
pub use reading::{mark_read, page};
pub use sessions::churn_sessions;
pub use sockets::{
    connect_all, cut_now_and_then, stall_now_and_then, type_now_and_then, until_caught_up,
    wait_until_live,
};
pub use writing::{edit_and_remove, hot_chat, replay, retry, write, write_on_socket};

/// What all workers of a run share: when to stop, how fast to go, texts that are used once.
#[derive(Clone, Debug)]
pub struct Work {
    shared: Arc<Shared>,
    /// Between two things that a worker does, on average; zero for as fast as the answers come.
    pub pace: Duration,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    workers: AtomicU64,
    texts: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Work {
    /// Work that ends with `stop`. The same seed gives the same choices, as far as answers come in
    /// the same order.
    pub fn new(seed: u64, pace: Duration, stop: CancellationToken) -> Self {
        let (workers, texts, tasks) = (AtomicU64::new(0), AtomicU64::new(0), TaskTracker::new());
        Self { shared: Arc::new(Shared { seed, workers, texts, tasks, stop }), pace }
    }

    /// The same work at another pace.
    #[must_use]
    pub fn at_pace(&self, pace: Duration) -> Self {
        Self { pace, ..self.clone() }
    }

    /// Runs a worker beside the others.
    pub fn spawn(&self, worker: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(worker);
    }

    /// Where its tasks run, for devices.
    pub fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    /// Ends the work; waits until every worker is done with what it was doing.
    pub async fn finish(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Whether to stop.
    pub fn is_over(&self) -> bool {
        self.shared.stop.is_cancelled()
    }

    /// The source of one worker's choices.
    pub fn rng(&self) -> StdRng {
        let worker = self.shared.workers.fetch_add(1, Ordering::Relaxed);
        StdRng::seed_from_u64(self.shared.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ worker)
    }

    /// A text, or a key, that is used once in the run.
    pub fn unique(&self, what: &str) -> String {
        let number = self.shared.texts.fetch_add(1, Ordering::Relaxed);
        format!("{what} {number} of run {:x}", self.shared.seed)
    }

    /// Waits for the pace, more or less. Whether to go on.
    pub async fn rest(&self, rng: &mut StdRng) -> bool {
        self.wait(self.pace.mul_f64(rng.random_range(0.5..1.5))).await
    }

    /// Waits. Whether to go on.
    pub async fn wait(&self, span: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => false,
            () = tokio::time::sleep(span) => true,
        }
    }
}
