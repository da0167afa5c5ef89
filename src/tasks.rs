//! The work of a process beside its single requests: counted, so that it can be waited for, and
//! told when to stop.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// The tasks of one process. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    broken: CancellationToken,
}

impl Tasks {
    /// Runs something that ends by itself soon, or at [`Tasks::stop_token`].
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tracker.spawn(work)
    }

    /// Counts something that somebody else runs.
    pub fn track<F: Future>(&self, work: F) -> TrackedFuture<F> {
        self.tracker.track_future(work)
    }

    /// Runs something without which this process can't keep its promises. If it panics, the process
    /// must end, to be started anew ([`Tasks::broken`]): one that goes on would take requests that
    /// nobody works on.
    pub fn spawn_vital<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watch = Watch { name, broken: self.broken.clone() };
        self.tracker.spawn(async move {
            let _watch = watch;
            work.await;
        });
    }

    /// Is cancelled when the tasks are to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Comes back once a vital task panicked.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Tells all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all have ended.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Dropped with the task, however that ends.
struct Watch {
    name: &'static str,
    broken: CancellationToken,
}

impl Drop for Watch {
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
        tasks.spawn_vital("clumsy", async { panic!("it was told to") });
        tasks.broken().await;
        let tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn_vital("obedient", async move { stop.cancelled().await });
        tasks.stop();
        tasks.wait().await;
        assert!(!tasks.broken.is_cancelled());
    }
}
