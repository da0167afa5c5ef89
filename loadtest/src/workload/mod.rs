//! The workloads of a run: users and their actions. They are seeded, bounded and recorded.

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

/// The state that all workers of a run share: stop signal, pace, random seed, unique texts.
#[derive(Clone, Debug)]
pub struct Work {
    shared: Arc<Shared>,
    /// Average pause between two actions of a worker; zero for no pause.
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
    /// Creates work that ends with `stop`. The same seed gives the same choices if answers arrive
    /// in the same order.
    pub fn new(seed: u64, pace: Duration, stop: CancellationToken) -> Self {
        let (workers, texts, tasks) = (AtomicU64::new(0), AtomicU64::new(0), TaskTracker::new());
        Self { shared: Arc::new(Shared { seed, workers, texts, tasks, stop }), pace }
    }

    /// The same work at another pace.
    #[must_use]
    pub fn at_pace(&self, pace: Duration) -> Self {
        Self { pace, ..self.clone() }
    }

    /// Runs a worker in a task of its own.
    pub fn spawn(&self, worker: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(worker);
    }

    /// The tracker of the work's tasks, for devices.
    pub fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    /// Stops the work and waits until every worker has ended.
    pub async fn finish(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Whether the work was stopped.
    pub fn is_over(&self) -> bool {
        self.shared.stop.is_cancelled()
    }

    /// Creates the random generator of one worker.
    pub fn rng(&self) -> StdRng {
        let worker = self.shared.workers.fetch_add(1, Ordering::Relaxed);
        StdRng::seed_from_u64(self.shared.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ worker)
    }

    /// Returns a text or a key that is unique in the run.
    pub fn unique(&self, what: &str) -> String {
        let number = self.shared.texts.fetch_add(1, Ordering::Relaxed);
        format!("{what} {number} of run {:x}", self.shared.seed)
    }

    /// Waits for the pace, with jitter. Returns whether to continue.
    pub async fn rest(&self, rng: &mut StdRng) -> bool {
        self.wait(self.pace.mul_f64(rng.random_range(0.5..1.5))).await
    }

    /// Waits for this time, or until the work is stopped. Returns whether to continue.
    pub async fn wait(&self, span: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => false,
            () = tokio::time::sleep(span) => true,
        }
    }
}
