//! The background tasks of a replica. All are tracked, so that a stop can cancel them and wait for
//! their end.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// The tasks of one replica. Clones share one set of tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    broken: CancellationToken,
}

impl Tasks {
    /// Runs a task that ends soon, or when [`Tasks::stop_token`] is cancelled.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tracker.spawn(work)
    }

    /// Tracks a future that another task runs.
    pub fn track<F: Future>(&self, work: F) -> TrackedFuture<F> {
        self.tracker.track_future(work)
    }

    /// Runs a task that the replica cannot work without. If it panics, the process must end, so
    /// that the orchestrator restarts it ([`Tasks::broken`]): otherwise the replica would accept
    /// requests that never complete.
    pub fn spawn_vital<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = PanicGuard { name, broken: self.broken.clone() };
        self.tracker.spawn(async move {
            let _guard = guard;
            work.await;
        });
    }

    /// A token that is cancelled when the tasks must stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Returns once a vital task panicked.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Requests all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all tasks have ended. Another task may still start meanwhile.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Reports a panic of the task that owns it. Dropped when the task ends.
struct PanicGuard {
    name: &'static str,
    broken: CancellationToken,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a vital task panicked");
            self.broken.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_panics_breaks_the_process_and_one_that_ends_does_not() {
        let tasks = Tasks::default();
        tasks.spawn_vital("panics", async { panic!("intended by the test") });
        tasks.broken().await;

        let tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn_vital("ends", async move { stop.cancelled().await });
        tasks.stop();
        tasks.wait().await;
        assert!(!tasks.broken.is_cancelled());
    }
}
