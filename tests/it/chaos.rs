//! A fleet of processes under fire, and a checker that reads everything that everybody did and saw.
//!
//! `make chaos` runs [`as_long_as_told`]; `make test` a short one, and one for each deliberate fault of the server that the
//! checker must notice.

mod database;
mod fault;
mod mutants;
mod scene;
pub mod stage;
pub mod verdict;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::Mutex;

use fault::{Fault, Tally};
use scene::Scene;
use stage::{Stage, Wrong};
use verdict::Verdict;

const REPLICAS: usize = 3;
/// One fire at a time: two would only make each other slow.
static TURN: Mutex<()> = Mutex::const_new(());
/// How long a revoked session may be served: 10 s where Redis is down, and a replica may have been stopped for 5 s.
const REVOKE: Duration = Duration::from_secs(15);
/// How long the fleet may take to be well again after a fault.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// A run.
struct Run {
    seed: u64,
    span: Duration,
    faults: &'static [Fault],
    wrong: Wrong,
    /// Pause of each writer between two messages.
    pace: Duration,
    /// How long a revoked session may be served.
    revoke: Duration,
}

/// What happened besides what the checker saw.
#[derive(Debug, Default)]
struct Events {
    faults: Tally,
    crashes: u64,
    slowest_recovery: Duration,
}

async fn run(run: &Run) -> (Events, Verdict) {
    announce(run);
    let mut stage = Stage::set(REPLICAS, &run.wrong).await;
    let scene = Scene::set(&stage, run.seed, run.pace).await;
    scene.begin();
    let mut rng = StdRng::seed_from_u64(run.seed);
    let mut events = Events::default();
    let start = Instant::now();
    let mut told = start;
    while start.elapsed() < run.span {
        if let Some(fault) = run.faults.choose(&mut rng) {
            *events.faults.entry(*fault).or_default() += 1;
            fault::happen(*fault, &mut stage, &mut rng).await;
            if rng.random_bool(0.3)
                && let Some(second) = run.faults.choose(&mut rng)
            {
                // Right after the first, before it is overcome.
                *events.faults.entry(*second).or_default() += 1;
                fault::happen(*second, &mut stage, &mut rng).await;
            }
        }
        events.crashes += stage.revive();
        let recovery = recover(&scene, &mut stage, &mut events).await;
        events.slowest_recovery = events.slowest_recovery.max(recovery);
        verdict::sample_memory(&stage, &scene);
        if told.elapsed() > Duration::from_mins(1) {
            told = Instant::now();
            report_progress(start, &events, &scene);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..700))).await;
    }
    let verdict = verdict::reach(&mut stage, &scene, run.revoke).await;
    (events, verdict)
}

/// Waits until every replica takes messages again.
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

#[expect(clippy::print_stdout, reason = "who wants to see a failure again needs the seed")]
fn announce(run: &Run) {
    println!("seed {}: {} s, {REPLICAS} replicas", run.seed, run.span.as_secs());
}

#[expect(clippy::print_stdout, reason = "a long run shows that it lives")]
fn report_progress(start: Instant, events: &Events, scene: &Scene) {
    let (operations, frames) = scene.history.len();
    let faults: u64 = events.faults.values().sum();
    println!("{:>5} s: {faults} faults, {operations} operations, {frames} frames", start.elapsed().as_secs());
}

#[expect(clippy::print_stdout, reason = "the figures are what the run is for")]
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

/// Crashes after a commit that nobody heard of, before one, and between the steps of a sync.
const FAILPOINTS: &str = "committed=crash/4000,announced=crash/4000,committing=crash/6000,followed=wait:20/20,\
                          snapshot_read=wait:20/20,resolved=wait:50/20";

/// A minute of everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_under_fire_loses_doubles_reorders_and_leaks_nothing() {
    let _turn = TURN.lock().await;
    let seed = variable("STARLING_CHAOS_SEED").unwrap_or_else(rand::random);
    let wrong = Wrong { mutant: None, failpoints: FAILPOINTS, quick_heartbeat: true };
    let span = Duration::from_secs(75);
    let short = Run { seed, span, faults: Fault::ALL, wrong, pace: Duration::from_millis(100), revoke: REVOKE };
    let (events, verdict) = run(&short).await;
    print(&short, &events, &verdict);
    verdict.must_be_clean();
}

/// `STARLING_CHAOS_SECONDS` and `STARLING_CHAOS_SEED` tell how long and from which seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as long as it is told: make chaos"]
async fn as_long_as_told() {
    let seed = variable("STARLING_CHAOS_SEED").unwrap_or_else(rand::random);
    let span = Duration::from_secs(variable("STARLING_CHAOS_SECONDS").unwrap_or(1800));
    let wrong = Wrong { mutant: None, failpoints: FAILPOINTS, quick_heartbeat: true };
    let long = Run { seed, span, faults: Fault::ALL, wrong, pace: Duration::from_millis(60), revoke: REVOKE };
    let (events, verdict) = run(&long).await;
    print(&long, &events, &verdict);
    verdict.must_be_clean();
}
