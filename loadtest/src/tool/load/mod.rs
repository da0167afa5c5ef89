//! The workloads.

mod crash;
mod cut;
mod greedy;
mod idle;
pub(super) mod inbox;
mod listeners;
mod loss;
mod mix;
mod pace;
mod proof;
mod recorded;
mod seed;
mod sender;
mod slo;
mod speed;
mod storm;
mod users;

use serde::Serialize;

use super::cli::{Load, Workload};
use super::floor::Floors;
use super::meter::Summary;
use super::stage::{Figure, Stage};
use super::watch::Spent;

/// Most connections of one user.
const CONNECTIONS_PER_USER: usize = 20;
/// Private chats that a seeded user opens, with the next users.
const PEERS: usize = 4;

/// The result of a workload.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub workload: Workload,
    pub figures: Vec<Figure>,
    /// Floors measured before and after it.
    pub floors: Floors,
    /// Latencies over time.
    pub meters: Vec<Summary>,
    /// CPU and memory used.
    pub spent: Spent,
    /// Failures that are not violations: refusals, missing answers, connections that ended.
    pub errors: u64,
    /// Describes the passed checks.
    pub proven: String,
    /// Further remarks, one sentence each.
    pub notes: Vec<String>,
    /// Growth of the servers' counters; empty without `--metrics`.
    pub counted: String,
    /// Number of violations: failed checks of the server's guarantees.
    pub violations: u64,
    /// Descriptions of the first violations.
    pub sentences: Vec<String>,
}

/// The measurements of a workload.
#[derive(Debug, Default)]
struct Measured {
    figures: Vec<Figure>,
    meters: Vec<Summary>,
    spent: Spent,
    errors: u64,
    proven: String,
    notes: Vec<String>,
}

/// Runs one workload.
///
/// # Errors
/// If the workload cannot run. Violations are part of the outcome.
pub async fn run(stage: &Stage, workload: Workload) -> Result<Outcome, String> {
    let measured = match workload {
        Workload::Idle => idle::run(stage).await?,
        Workload::Sends => match stage.load.until_slo {
            Some(objective_ms) => slo::search(stage, objective_ms).await?,
            None => speed::sends(stage).await?,
        },
        Workload::Fanout => speed::fan_out(stage).await?,
        Workload::Seed => seed::run(stage).await?,
        Workload::Inbox => inbox::run(stage).await?,
        Workload::Storm => storm::run(stage).await?,
        Workload::Mix => mix::run(stage).await?,
        Workload::Churn => recorded::churn(stage).await?,
        Workload::Crash => crash::run(stage).await?,
        Workload::Cut => cut::run(stage).await?,
        Workload::Loss => loss::run(stage).await?,
        Workload::Greedy => greedy::run(stage).await?,
    };

    let (violations, sentences) = stage.verdict.take();
    let Measured { figures, meters, spent, errors, proven, notes } = measured;
    let (counted, floors) = (String::new(), Floors::default());
    Ok(Outcome {
        workload,
        figures,
        floors,
        meters,
        spent,
        errors,
        proven,
        notes,
        counted,
        violations,
        sentences,
    })
}

/// Checks that a workload can run on this many replicas of a local deployment; 0 for a target that
/// this program did not start.
///
/// # Errors
/// If the workload needs several local replicas.
pub fn is_possible(workload: Workload, own_replicas: u16) -> Result<(), String> {
    if own_replicas < 2 && matches!(workload, Workload::Crash | Workload::Cut | Workload::Loss) {
        let word = workload.word();
        return Err(format!(
            "{word} kills or disconnects replicas: run `local --replicas 2 {word}` without \
             --embedded"
        ));
    }
    Ok(())
}

/// Returns whether the servers must limit rates for these workloads.
///
/// # Errors
/// If only some of the workloads need rate limits.
pub fn limits_rates(workloads: &[Workload]) -> Result<bool, String> {
    let greedy = workloads.iter().filter(|workload| **workload == Workload::Greedy).count();
    if greedy > 0 && greedy < workloads.len() {
        return Err(
            "greedy needs rate limits, and the other workloads need them off: run greedy by itself"
                .to_owned(),
        );
    }
    Ok(greedy > 0)
}

/// Returns how many accounts a workload needs.
pub fn accounts_needed(load: &Load, workload: Workload) -> usize {
    match workload {
        Workload::Idle => usize::from(load.connections).div_ceil(CONNECTIONS_PER_USER),
        Workload::Loss => usize::from(load.connections).div_ceil(loss::CONNECTIONS_PER_USER) + 1,
        Workload::Sends => 2 * usize::from(load.senders),
        Workload::Greedy => 2 * usize::from(load.senders) + 2,
        Workload::Fanout => usize::from(load.members) + 1,
        Workload::Seed
        | Workload::Inbox
        | Workload::Storm
        | Workload::Mix
        | Workload::Churn
        | Workload::Crash
        | Workload::Cut => usize::from(load.people),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn accounts_needed_depends_on_the_workload() {
        let line = [
            "starling-loadtest",
            "local",
            "idle",
            "--connections",
            "41",
            "--senders",
            "3",
            "--members",
            "9",
        ];
        let Command::Local { load, .. } = Cli::parse_from(line).command else {
            panic!("not local")
        };
        let needed = [Workload::Idle, Workload::Sends, Workload::Fanout]
            .map(|it| accounts_needed(&load, it));
        assert_eq!(needed, [3, 6, 10]);
    }

    #[test]
    fn only_greedy_needs_rate_limits() {
        assert_eq!(limits_rates(&[Workload::Greedy]), Ok(true));
        assert_eq!(limits_rates(&[Workload::Sends, Workload::Mix]), Ok(false));
        assert!(limits_rates(&[Workload::Greedy, Workload::Sends]).is_err());
    }

    #[test]
    fn workloads_that_kill_replicas_need_two_local_replicas() {
        assert!(is_possible(Workload::Crash, 1).is_err() && is_possible(Workload::Cut, 0).is_err());
        assert!(is_possible(Workload::Crash, 2).is_ok() && is_possible(Workload::Storm, 0).is_ok());
    }
}
