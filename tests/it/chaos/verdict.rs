//! The check after a run: ends all faults, reads the log from every replica, and checks the record
//! against the invariants.

use std::time::Duration;

use starling_loadtest::checker::{Evidence, Exposed, Limits, Report, check};
use starling_loadtest::history::{self, Record};
use starling_loadtest::services::process::resident_bytes;
use starling_loadtest::workload;

use super::database;
use super::scene::Scene;
use super::stage::Stage;
use crate::support::Mode;

/// How long the devices may take to catch up after the last fault and the last change.
pub const HEAL: Duration = Duration::from_secs(10);
/// The maximum of a replica's resident bytes: a debug build under this load.
const RSS_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// The checker's report, and the record that it is about.
pub struct Verdict {
    pub report: Report,
    record: Record,
}

impl Verdict {
    /// Fails unless the report is clean. Writes the record to a file in that case.
    #[track_caller]
    pub fn must_be_clean(&self) {
        if self.report.is_clean() {
            return;
        }
        let path =
            std::env::temp_dir().join(format!("starling-chaos-{}.jsonl", std::process::id()));
        history::dump(&self.record, std::fs::File::create(&path).unwrap()).unwrap();
        panic!("the record is in {}\n{}", path.display(), self.report);
    }
}

/// Records the resident bytes of each replica.
pub fn sample_memory(stage: &Stage, scene: &Scene) {
    for (number, replica) in stage.replicas.iter().enumerate() {
        if let Some(bytes) = replica.pid().and_then(resident_bytes) {
            scene.history.sample_memory(scene.history.name(&format!("replica {number}")), bytes);
        }
    }
}

/// Ends all faults, waits until the devices have caught up, and checks the run.
pub async fn reach(stage: &mut Stage, scene: &Scene, revoke: Duration) -> Verdict {
    for replica in &stage.replicas {
        replica.to_postgres.set(Mode::Pass);
        replica.to_redis.set(Mode::Pass);
        replica.signal("-CONT");
    }

    stage.revive();
    for replica in &mut stage.replicas {
        replica.until_ready_again().await;
    }
    scene.work.finish().await;
    stage.revive();
    for replica in &mut stage.replicas {
        replica.until_ready_again().await;
    }

    let healed_us = scene.history.now_us();
    let mut log = workload::read_final_log(&scene.community.actors).await.unwrap();
    let heal = workload::until_caught_up(&scene.devices, &log, healed_us, HEAL).await;
    database::complete(&mut log, &scene.history, &stage.postgres.url()).await;
    scene.hang_up().await;

    let keys: Vec<String> = stage.redis.command(&["KEYS", "*"]).await;
    let exposed = [
        Exposed { place: "the replicas' logs".to_owned(), text: stage.logs() },
        Exposed { place: "the keys in Redis".to_owned(), text: keys.join("\n") },
    ];
    let limits = Limits {
        healed_us: Some(healed_us),
        heal,
        revoke,
        rss_bytes_max: Some(RSS_BYTES_MAX),
        ..Limits::default()
    };
    let record = scene.history.take();

    let report = check(&Evidence {
        record: &record,
        log: &log,
        secrets: &scene.secrets,
        exposed: &exposed,
        limits,
    });
    Verdict { report, record }
}
