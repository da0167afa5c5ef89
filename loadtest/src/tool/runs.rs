//! Runs workloads on a target or on local deployments.

use std::path::PathBuf;
use std::sync::Arc;

use starling_loadtest::actor::Account;

use super::cli::{Load, Workload};
use super::floor::{Bench, Floors};
use super::guard::raise_file_limit;
use super::load::{self, accounts_needed, is_possible};
use super::metrics;
use super::report::{Report, Run};
use super::site::{Shape, Site, versions};
use super::stage::Stage;

/// Open files besides connections.
const OTHER_FILES: u64 = 128;

/// The arguments of `local`.
#[derive(Debug)]
pub struct Local {
    /// Workloads in their order.
    pub workloads: Vec<Workload>,
    /// Number of replicas on Postgres and Redis, if any.
    pub replicas: Option<u16>,
    /// Whether clients connect directly to the replicas.
    pub direct: bool,
    /// Whether to measure embedded mode.
    pub embedded: bool,
    /// Path of the server binary, if it is not in the directory of this program.
    pub starling: Option<PathBuf>,
    /// Number of accounts to create, if not as many as needed.
    pub users: Option<u32>,
    /// Whether to measure the floors.
    pub floors: bool,
}

/// A running deployment.
#[derive(Debug)]
pub struct Target {
    /// Addresses of its replicas.
    pub bases: Vec<String>,
    /// URLs of their metrics, if known.
    pub metrics: Vec<String>,
}

/// Loads a running deployment.
///
/// # Errors
/// If a workload cannot run.
pub async fn on_target(
    target: Target,
    accounts: Vec<Account>,
    workloads: &[Workload],
    load: Load,
) -> Result<Run, String> {
    let Target { bases, metrics } = target;
    for workload in workloads {
        is_possible(*workload, 0)?;
    }
    let site = bases.join(", ");
    raise_file_limit(files(&load))?;
    let stage = Stage::new(bases, accounts, None, load)?;
    all(&stage, site, workloads, None, &metrics).await
}

/// Starts local deployments, loads them, and removes them.
///
/// # Errors
/// If a deployment does not start, or a workload cannot run.
pub async fn locally(local: Local, load: Load) -> Result<Report, String> {
    let program = program(local.starling.clone())?;
    // The balancer inherits the limit and opens two sockets for each connection.
    let is_balanced = !local.direct && local.replicas.is_some_and(|count| count > 1);
    raise_file_limit(files(&load) * if is_balanced { 2 } else { 1 })?;

    let fleet = |count| Shape::Replicas { count, direct: local.direct };
    let mut shapes: Vec<Shape> = local.replicas.map(fleet).into_iter().collect();
    if local.embedded || shapes.is_empty() {
        shapes.push(Shape::Embedded);
    }
    for (shape, workload) in
        shapes.iter().flat_map(|shape| local.workloads.iter().map(move |it| (shape, it)))
    {
        is_possible(*workload, shape.replicas())?;
    }

    let limits_rates = load::limits_rates(&local.workloads)?;
    let mut report = Report::new(&load, versions(&program).await);
    for shape in shapes {
        eprintln!("starting: {}", shape.words());
        let site = Arc::new(Site::start(shape, &program, limits_rates).await?);

        let needed = local
            .workloads
            .iter()
            .map(|workload| accounts_needed(&load, *workload))
            .max()
            .unwrap_or(1);
        let count = local.users.map_or(needed, |users| users as usize);
        eprintln!("creating {count} accounts");
        let accounts = site.make_accounts(count).await?;

        let bench = if local.floors {
            Some(Bench::new(&load, site.database_url(), site.redis_port())?)
        } else {
            None
        };
        let stage = Stage::new(site.bases(), accounts, Some(site.clone()), load.clone())?;
        report.runs.push(all(&stage, shape.words(), &local.workloads, bench, &[]).await?);
    }
    Ok(report)
}

/// Runs the workloads, each between two measurements of its floors.
async fn all(
    stage: &Stage,
    site: String,
    workloads: &[Workload],
    bench: Option<Bench>,
    metrics: &[String],
) -> Result<Run, String> {
    let mut outcomes = Vec::new();
    // `idle` runs first: connections that reuse memory which earlier work has freed would look
    // smaller than they are.
    let (idle, others): (Vec<Workload>, Vec<Workload>) =
        workloads.iter().partition(|it| **it == Workload::Idle);
    for workload in idle.into_iter().chain(others) {
        let floors = || async {
            let Some(bench) = &bench else { return Ok(Floors::default()) };
            eprintln!("{site}: measuring the floors of {}", workload.word());
            bench.measure(workload).await
        };

        let floors_before = floors().await?;
        eprintln!("{site}: {}", workload.word());
        let before = metrics::read(metrics).await?;
        let mut outcome = load::run(stage, workload).await?;
        outcome.counted = metrics::growth(&before, &metrics::read(metrics).await?);
        // With violations, the second measurement is skipped: its failure would hide them.
        outcome.floors = if outcome.violations > 0 {
            floors_before
        } else {
            floors_before.mean(&floors().await?)
        };
        outcomes.push(outcome);
    }
    Ok(Run { site, outcomes })
}

/// Estimates the open files of a run; nearly all are connections.
fn files(load: &Load) -> u64 {
    let most = [load.connections, load.members, load.senders * 2, load.people]
        .into_iter()
        .max()
        .unwrap_or(0);
    u64::from(most) + OTHER_FILES
}

/// Path of the server binary: the given one, or `starling` in the directory of this program.
fn program(named: Option<PathBuf>) -> Result<PathBuf, String> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("starling"));
    let program =
        named.or_else(beside).ok_or("cannot locate the starling binary: pass --starling")?;
    if program.is_file() {
        return Ok(program);
    }
    Err(format!("{} does not exist: build it, or pass --starling", program.display()))
}
