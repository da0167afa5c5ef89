//! The processes of a deployment. Workloads may stop and restart some of them.

use std::sync::Arc;

use parking_lot::Mutex;
use starling_loadtest::services::process::resident_bytes;

use super::proc::{self, Use};

/// A process together with its children: Postgres has one per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Role: `server`, `balancer`, `postgres` or `redis`.
    pub role: &'static str,
    pub pid: u32,
}

/// The processes of a deployment; empty if this program did not start it. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    living: Vec<Process>,
    /// CPU seconds of the ended processes, by role.
    gone: Vec<(&'static str, f64)>,
}

impl Processes {
    /// Adds a started process.
    pub fn add(&self, role: &'static str, pid: u32) {
        self.inner.lock().living.push(Process { role, pid });
    }

    /// Removes an ended process, which used this many CPU seconds.
    pub fn remove(&self, pid: u32, cpu_s: f64) {
        let mut inner = self.inner.lock();
        if let Some(index) = inner.living.iter().position(|process| process.pid == pid) {
            let role = inner.living.remove(index).role;
            inner.gone.push((role, cpu_s));
        }
    }

    /// Whether no process is known.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().living.is_empty()
    }

    /// Use of each role so far, including ended processes.
    pub fn used(&self) -> Vec<(&'static str, Use)> {
        let (living, gone) = {
            let inner = self.inner.lock();
            (inner.living.clone(), inner.gone.clone())
        };
        let living = living.iter().map(|process| (process.role, proc::of_tree(process.pid)));
        let gone = gone.iter().map(|(role, cpu_s)| (*role, Use { cpu_s: *cpu_s, memory_bytes: 0 }));

        let mut roles: Vec<(&'static str, Use)> = Vec::new();
        for (role, used) in living.chain(gone) {
            match roles.iter_mut().find(|(known, _)| *known == role) {
                Some((_, sum)) => {
                    sum.cpu_s += used.cpu_s;
                    sum.memory_bytes += used.memory_bytes;
                }
                None => roles.push((role, used)),
            }
        }
        roles
    }

    /// Resident bytes of the servers. Cheaper than [`Self::used`].
    pub fn server_bytes(&self) -> u64 {
        let inner = self.inner.lock();
        let servers = inner.living.iter().filter(|it| it.role == "server");
        servers.filter_map(|it| resident_bytes(it.pid)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_an_ended_process_stays_counted() {
        let (processes, own) = (Processes::default(), std::process::id());
        processes.add("server", own);
        processes.add("server", u32::MAX);
        assert!(processes.server_bytes() > 100_000);
        processes.remove(u32::MAX, 1000.0);
        processes.remove(u32::MAX, 1000.0);
        let used = processes.used();
        assert_eq!((used.len(), used[0].0), (1, "server"));
        assert!((1000.0..2000.0).contains(&used[0].1.cpu_s), "{used:?}");
    }
}
