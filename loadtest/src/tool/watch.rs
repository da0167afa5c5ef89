//! Watches a run: prints a line per second and measures CPU and memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::arith::{ratio, real, shown, thousands};
use super::meter::Meter;
use super::proc::{self, Machine, Use};
use super::processes::Processes;

/// CPU and memory use of the processes of a role.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleUse {
    /// `server`, `balancer`, `postgres` or `redis`.
    pub role: &'static str,
    pub cpu_s: f64,
    /// Memory at the end, in bytes.
    pub memory_bytes: u64,
}

/// CPU and memory use of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    /// Duration in seconds.
    pub seconds: f64,
    /// Use by role; empty if this program did not start the deployment.
    pub roles: Vec<RoleUse>,
    /// CPU seconds of this program.
    pub generator_cpu_s: f64,
    /// Share of the machine's CPU time that was busy, including stolen time, from 0 to 1.
    pub machine_busy: f64,
    /// Share that the hypervisor gave to other machines, from 0 to 1.
    pub machine_stolen: f64,
    /// Warning if the generator may have limited the run.
    pub bottleneck: Option<String>,
    /// Resident bytes of the servers, per second.
    pub memory_bytes: Vec<u64>,
}

impl Spent {
    /// CPU microseconds of a role per operation.
    pub fn cpu_us_each(&self, role: &str, count: u64) -> f64 {
        let cpu_s: f64 = self.roles.iter().filter(|it| it.role == role).map(|it| it.cpu_s).sum();
        ratio(cpu_s * 1e6, real(count))
    }
}

/// A watched run. Dropping ends the output.
#[derive(Debug)]
pub struct Watch {
    processes: Processes,
    began: Instant,
    before: Vec<(&'static str, Use)>,
    own_cpu_s: f64,
    machine: Machine,
    memory: Arc<Mutex<Vec<u64>>>,
    ticker: JoinSet<()>,
}

impl Watch {
    /// Starts to print a line per second with these meters.
    pub fn begin(processes: &Processes, meters: Vec<Arc<Meter>>) -> Self {
        let memory = Arc::new(Mutex::new(Vec::new()));
        let mut ticker = JoinSet::new();
        ticker.spawn(tick(processes.clone(), meters, memory.clone()));
        Self {
            processes: processes.clone(),
            began: Instant::now(),
            before: processes.used(),
            own_cpu_s: proc::own_cpu_s(),
            machine: proc::machine(),
            memory,
            ticker,
        }
    }

    /// Stops, and returns the use since [`Self::begin`].
    pub fn finish(mut self) -> Spent {
        self.ticker.abort_all();
        let machine = proc::machine();
        let before =
            |role: &str| self.before.iter().find(|it| it.0 == role).map_or(0.0, |it| it.1.cpu_s);
        let roles = self.processes.used().into_iter().map(|(role, now)| RoleUse {
            role,
            // The sum may shrink: the CPU time of an ended Postgres backend is missing until its
            // parent has waited for it.
            cpu_s: (now.cpu_s - before(role)).max(0.0),
            memory_bytes: now.memory_bytes,
        });

        let generator_cpu_s = proc::own_cpu_s() - self.own_cpu_s;
        let shares = proc::shares(self.machine, machine, generator_cpu_s);
        Spent {
            seconds: self.began.elapsed().as_secs_f64(),
            roles: roles.collect(),
            generator_cpu_s,
            machine_busy: shares.busy,
            machine_stolen: shares.stolen,
            bottleneck: proc::bottleneck(shares),
            memory_bytes: self.memory.lock().clone(),
        }
    }
}

/// Prints a line each second.
async fn tick(processes: Processes, meters: Vec<Arc<Meter>>, memory: Arc<Mutex<Vec<u64>>>) {
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    each_second.tick().await;

    let mut cpu_s = proc::own_cpu_s();
    for second in 1.. {
        each_second.tick().await;
        let own = proc::own_cpu_s();
        let bytes = processes.server_bytes();
        memory.lock().push(bytes);

        let mut line = format!("{second:>4} s");
        for meter in &meters {
            let past = meter.tick();
            line = format!(
                "{line}  {} {}/s (p50 {} ms, p99 {} ms)",
                meter.name(),
                thousands(past.count),
                shown(real(past.p50_us) / 1e3),
                shown(real(past.p99_us) / 1e3)
            );
        }

        if bytes > 0 {
            line = format!("{line}  server {} MiB", shown(real(bytes) / 1_048_576.0));
        }
        eprintln!("{line}  generator {:.0} % CPU", (own - cpu_s) * 100.0);
        cpu_s = own;
    }
}
