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

/// Connections that one user may have.
const CONNECTIONS_PER_USER: usize = 20;
/// A seeded user has a private chat with so many of the next ones.
const PEERS: usize = 4;

/// What a workload measured and found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Which.
    pub workload: Workload,
    /// What it measured.
    pub figures: Vec<Figure>,
    /// What it is held against.
    pub floors: Floors,
    /// Latencies.
    pub meters: Vec<Summary>,
    /// What was used.
    pub spent: Spent,
    /// What went wrong without breaking a promise: refusals, connections that ended.
    pub errors: u64,
    /// What was proven, in words.
    pub proven: String,
    /// What else is to be known of it, a sentence each.
    pub notes: Vec<String>,
    /// What the servers counted meanwhile, in words; empty where they were not asked.
    pub counted: String,
    /// Promises that were broken.
    pub violations: u64,
    /// The first of them.
    pub sentences: Vec<String>,
}

/// What a workload hands back.
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
/// In a sentence, if it can't be run. What a run finds wrong is part of its outcome.
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

/// Fails if a workload can't be run on so many replicas of this program's own, 0 where none is.
///
/// # Errors
/// In a sentence.
pub fn is_possible(workload: Workload, own_replicas: u16) -> Result<(), String> {
    if own_replicas < 2 && matches!(workload, Workload::Crash | Workload::Cut | Workload::Loss) {
        let word = workload.word();
        return Err(format!(
            "{word} breaks replicas of its own: `local --replicas 2 {word}`, without --embedded"
        ));
    }
    Ok(())
}

/// Whether a workload is about the limits of rates: for the others they are lifted.
///
/// # Errors
/// In a sentence, if some of these workloads are and some are not.
pub fn limits_rates(workloads: &[Workload]) -> Result<bool, String> {
    let greedy = workloads.iter().filter(|workload| **workload == Workload::Greedy).count();
    if greedy > 0 && greedy < workloads.len() {
        return Err(
            "greedy needs servers that limit rates, and the others need such as do not: run it alone".to_owned()
        );
    }
    Ok(greedy > 0)
}

/// How many accounts a workload needs.
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
    fn a_workload_asks_for_the_accounts_that_it_uses() {
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
    fn rates_are_limited_for_greedy_alone() {
        assert_eq!(limits_rates(&[Workload::Greedy]), Ok(true));
        assert_eq!(limits_rates(&[Workload::Sends, Workload::Mix]), Ok(false));
        assert!(limits_rates(&[Workload::Greedy, Workload::Sends]).is_err());
    }

    #[test]
    fn what_breaks_replicas_is_refused_where_there_are_none_to_break() {
        assert!(is_possible(Workload::Crash, 1).is_err() && is_possible(Workload::Cut, 0).is_err());
        assert!(is_possible(Workload::Crash, 2).is_ok() && is_possible(Workload::Storm, 0).is_ok());
    }
}
