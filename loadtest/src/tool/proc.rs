//! CPU and memory use of processes, from `/proc`.

use std::collections::BTreeMap;

use serde::Serialize;
use starling_loadtest::services::process::kib_field;

use super::arith::{ratio, real};

/// CPU and memory use of a process and its descendants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Use {
    /// CPU seconds so far, including ended children that the process has waited for.
    pub cpu_s: f64,
    /// Resident bytes. Shared pages count once if the kernel offers `smaps_rollup`.
    pub memory_bytes: u64,
}

/// CPU use of the whole machine since boot, in CPU seconds of all cores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Machine {
    /// Busy time, including stolen time.
    pub busy: f64,
    /// Time that the hypervisor gave to other machines while this one had work.
    pub stolen: f64,
    /// Total time.
    pub all: f64,
}

fn tick_s() -> f64 {
    1.0 / real(rustix::param::clock_ticks_per_second().max(1))
}

/// CPU seconds of this program so far. Ended children are left out, because they are counted by
/// role.
pub fn own_cpu_s() -> f64 {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", std::process::id())).unwrap_or_default();
    cpu_s(&stat, 11..13)
}

/// Sums time fields of `/proc/PID/stat`: 11 and 12 are user and system time, 13 and 14 those of
/// children that the process has waited for.
fn cpu_s(stat: &str, fields: std::ops::Range<usize>) -> f64 {
    real(fields.filter_map(|number| stat_field(stat, number)).sum()) * tick_s()
}

/// Use of a process and its descendants; zero for a process that has ended.
pub fn of_tree(pid: u32) -> Use {
    let parents = parents();
    let is_below = |mut child: u32| {
        // The bound prevents an endless loop: the table may change while it is read.
        for _ in 0..64 {
            if child == pid {
                return true;
            }
            match parents.get(&child) {
                Some(parent) => child = *parent,
                None => return false,
            }
        }
        false
    };

    let mut all = Use::default();
    for one in parents.keys().filter(|child| is_below(**child)).filter_map(|child| of_one(*child)) {
        all.cpu_s += one.cpu_s;
        all.memory_bytes += one.memory_bytes;
    }
    all
}

/// Parent of each process.
fn parents() -> BTreeMap<u32, u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |pid: u32| {
        Some((pid, stat_field(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 1)?))
    };
    pids.filter_map(parent).map(|(pid, parent)| (pid, u32::try_from(parent).unwrap_or(0))).collect()
}

/// A field of `/proc/PID/stat`, counted from the state (0), which follows the command name. That
/// name may contain spaces and brackets.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(number)?.parse().ok()
}

/// Use of one process, without descendants.
fn of_one(pid: u32) -> Option<Use> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let read = |file: &str, key: &str| {
        kib_field(&std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?, key)
    };
    let kib = read("smaps_rollup", "Pss:").or_else(|| read("status", "VmRSS:")).unwrap_or(0);
    Some(Use { cpu_s: cpu_s(&stat, 11..15), memory_bytes: kib * 1024 })
}

/// CPU use of the machine so far.
pub fn machine() -> Machine {
    machine_of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn machine_of(stat: &str) -> Machine {
    let line = stat.lines().next().unwrap_or_default();
    // The fields are: user nice system idle iowait irq softirq steal. The following guest times are
    // part of user and nice.
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let seconds = |ticks| real(ticks) * tick_s();

    Machine {
        busy: seconds(all - idle),
        stolen: seconds(ticks.get(7).copied().unwrap_or(0)),
        all: seconds(all),
    }
}

/// A warning if the generator may have limited the run: the machine was fully busy, and the
/// generator used a large share of it.
pub fn bottleneck(shares: Shares) -> Option<String> {
    const BUSY: f64 = 0.9;
    const SHARE: f64 = 0.25;
    (shares.busy >= BUSY && shares.own >= SHARE).then(|| {
        format!(
            "the generator may have been the bottleneck: the cores were {:.0} % busy, {:.0} % of \
             them with the generator",
            shares.busy * 100.0,
            shares.own * 100.0
        )
    })
}

/// Shares of the machine's CPU time in an interval, each from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Share that was busy.
    pub busy: f64,
    /// Share that other machines took.
    pub stolen: f64,
    /// Share of the generator.
    pub own: f64,
}

/// Computes the shares between two readings; the generator used `own_cpu_s` meanwhile.
pub fn shares(before: Machine, after: Machine, own_cpu_s: f64) -> Shares {
    let share = |seconds: f64| ratio(seconds, after.all - before.all);
    Shares {
        busy: share(after.busy - before.busy),
        stolen: share(after.stolen - before.stolen),
        own: share(own_cpu_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_is_its_own_tree() {
        assert!(of_tree(std::process::id()).memory_bytes > 100_000);
        assert_eq!(of_tree(u32::MAX), Use::default());
    }

    #[test]
    fn a_command_with_a_bracket_in_its_name_is_read() {
        assert_eq!(stat_field("12 (a) b (c) S 7 8 9", 1), Some(7));
        let stat = "12 (a b) S 1 2 3 4 5 6 7 8 9 10 300 100 5000 6000 0";
        let ratio = cpu_s(stat, 11..15) / cpu_s(stat, 11..13);
        assert!((ratio - 28.5).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn the_machines_idle_time_is_not_busy() {
        let machine = machine_of("cpu  10 0 5 70 10 0 0 5 0 0\ncpu0 1");
        assert!((machine.busy / machine.all - 0.2).abs() < 1e-9);
        assert!((machine.stolen / machine.all - 0.05).abs() < 1e-9);

        let later = Machine { busy: 9.5, stolen: 1.0, all: 10.0 };
        let shares = shares(Machine::default(), later, 4.0);
        assert!((shares.stolen - 0.1).abs() < 1e-9);
        assert!(
            bottleneck(shares).is_some_and(|word| word.contains("95 %") && word.contains("40 %"))
        );
        assert_eq!(bottleneck(Shares { busy: 0.5, ..shares }), None);
        assert_eq!(bottleneck(Shares { own: 0.1, ..shares }), None);
    }
}
