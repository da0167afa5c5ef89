//! A fleet of processes under faults, and a checker of all that the clients did and received.
//!
//! `make chaos` runs [`a_long_run_loses_doubles_reorders_and_leaks_nothing`]; `make test` makes a
//! short run from a fixed seed.

mod database;
mod fault;
mod scene;
pub mod stage;
pub mod verdict;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use fault::{Fault, Tally};
use scene::Scene;
use stage::{Stage, StageOptions};
use verdict::Verdict;

const REPLICAS: usize = 3;
/// How long a revoked session may be served: 10 s while Redis is down, and 5 s while the replica is
/// stopped.
const REVOKE: Duration = Duration::from_secs(15);
/// How long the fleet may take to recover from a fault.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

struct Run {
    seed: u64,
    /// The minimum length of the run. Each kind of fault happens once, however long that takes.
    span: Duration,
    options: StageOptions,
    /// The pause of each writer between two messages.
    pace: Duration,
    /// How long a revoked session may be served.
    revoke: Duration,
}

/// The faults and recoveries of a run.
#[derive(Debug, Default)]
struct Events {
    faults: Tally,
    crashes: u64,
    slowest_recovery: Duration,
}

async fn run(run: &Run) -> (Events, Verdict) {
    announce(run);
    let mut stage = Stage::set(REPLICAS, &run.options).await;
    let scene = Scene::set(&stage, run.seed, run.pace).await;
    scene.begin();

    let mut rng = StdRng::seed_from_u64(run.seed);
    let mut events = Events::default();
    let start = Instant::now();
    let mut reported_at = start;

    let mut deck: Vec<Fault> = Vec::new();
    while start.elapsed() < run.span || events.faults.len() < Fault::ALL.len() {
        // Every kind of fault happens once before any kind happens again.
        if deck.is_empty() {
            deck = Fault::ALL.to_vec();
            deck.shuffle(&mut rng);
        }

        // Three times in ten a second fault follows before the fleet has recovered from the first.
        let at_once = if rng.random_bool(0.3) { 2 } else { 1 };
        for fault in deck.split_off(deck.len().saturating_sub(at_once)) {
            *events.faults.entry(fault).or_default() += 1;
            fault::happen(fault, &mut stage, &mut rng).await;
        }

        events.crashes += stage.revive();
        let recovery = recover(&scene, &mut stage, &mut events).await;
        events.slowest_recovery = events.slowest_recovery.max(recovery);
        verdict::sample_memory(&stage, &scene);
        if reported_at.elapsed() > Duration::from_mins(1) {
            reported_at = Instant::now();
            report_progress(start, &events, &scene);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..700))).await;
    }

    let verdict = verdict::reach(&mut stage, &scene, run.revoke).await;
    (events, verdict)
}

/// Waits until every replica accepts messages. Returns how long that took.
async fn recover(scene: &Scene, stage: &mut Stage, events: &mut Events) -> Duration {
    let start = Instant::now();
    while !scene.is_well(REPLICAS).await {
        assert!(
            start.elapsed() < RECOVERY_MAX,
            "the fleet does not recover from {:?}\n{}",
            events.faults,
            stage.logs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        events.crashes += stage.revive();
    }
    start.elapsed()
}

#[expect(clippy::print_stdout, reason = "the seed repeats a failed run")]
fn announce(run: &Run) {
    println!("seed {}: {} s, {REPLICAS} replicas", run.seed, run.span.as_secs());
}

#[expect(clippy::print_stdout, reason = "a long run reports its progress")]
fn report_progress(start: Instant, events: &Events, scene: &Scene) {
    let (operations, frames) = scene.history.len();
    let faults: u64 = events.faults.values().sum();
    println!(
        "{:>5} s: {faults} faults, {operations} operations, {frames} frames",
        start.elapsed().as_secs()
    );
}

#[expect(clippy::print_stdout, reason = "the figures are the result of the run")]
fn print(run: &Run, events: &Events, verdict: &Verdict) {
    announce(run);
    println!("faults: {} of {} kinds", events.faults.values().sum::<u64>(), events.faults.len());
    for (fault, count) in &events.faults {
        println!("  {count:>4} {fault:?}");
    }
    println!("  {:>4} crashes at failpoints", events.crashes);
    println!("slowest recovery: {:.1} s", events.slowest_recovery.as_secs_f64());
    println!("{}", verdict.report);
}

/// A number from the environment.
pub fn variable(name: &str) -> Option<u64> {
    std::env::vars().find_map(|(key, value)| (key == name).then(|| value.parse().unwrap()))
}

/// Crashes after a commit that is not yet published, and before a commit; pauses between the steps
/// of a sync.
const FAILPOINTS: &str = "committed=crash/4000,announced=crash/4000,committing=crash/6000,\
                          followed=wait:20/20,snapshot_read=wait:20/20,resolved=wait:50/20";

/// The seed of the run in `make test`, unless `STARLING_CHAOS_SEED` names another.
const SEED: u64 = 20_261_126;

/// Every kind of fault once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_under_faults_loses_doubles_reorders_and_leaks_nothing() {
    let seed = variable("STARLING_CHAOS_SEED").unwrap_or(SEED);
    let options = StageOptions { failpoints: FAILPOINTS, quick_heartbeat: true };
    let short = Run {
        seed,
        span: Duration::ZERO,
        options,
        pace: Duration::from_millis(100),
        revoke: REVOKE,
    };
    let (events, verdict) = run(&short).await;

    print(&short, &events, &verdict);
    verdict.must_be_clean();
}

/// `STARLING_CHAOS_SECONDS` and `STARLING_CHAOS_SEED` set the length and the seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for STARLING_CHAOS_SECONDS: make chaos"]
async fn a_long_run_loses_doubles_reorders_and_leaks_nothing() {
    let seed = variable("STARLING_CHAOS_SEED").unwrap_or_else(rand::random);
    let span = Duration::from_secs(variable("STARLING_CHAOS_SECONDS").unwrap_or(1800));
    let options = StageOptions { failpoints: FAILPOINTS, quick_heartbeat: true };
    let long = Run { seed, span, options, pace: Duration::from_millis(60), revoke: REVOKE };
    let (events, verdict) = run(&long).await;
    print(&long, &events, &verdict);
    verdict.must_be_clean();
}
