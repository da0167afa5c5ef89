//! Tests that the program detects a wrong server. Each deliberate fault of the server must make the
//! program fail with a message that names the location. The faults are compiled in by the server's
//! feature `faults`; without it, these tests are skipped.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test panics on a failure, and prints why it is skipped"
)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::{PROGRAM, folder};

/// Held by the running test. Concurrent tests would slow each other down.
static RUNNING: Mutex<()> = Mutex::new(());

/// A deliberate fault of the server.
struct Fault {
    mutant: &'static str,
    /// Delays that make the fault likely to have an effect.
    failpoints: &'static str,
}

/// Runs `local` with a faulty server. Returns the output if the run failed.
fn output_of_failure(fault: &Fault, dir: &Path, workload: &str) -> Option<String> {
    let output = Command::new(PROGRAM)
        .arg("local")
        .args(workload.split(' '))
        .args(["--warm-up", "0"])
        .current_dir(dir)
        .env("TMPDIR", dir)
        .env("STARLING_MUTANT", fault.mutant)
        .env("STARLING_FAILPOINTS", fault.failpoints)
        .output()
        .unwrap();

    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || text.contains("NOT CORRECT"), "the run broke off: {text}");

    (!output.status.success()).then_some(text)
}

/// Whether the server beside the program was built with its faults.
fn has_faults() -> bool {
    let server = std::fs::read(Path::new(PROGRAM).with_file_name("starling")).unwrap_or_default();
    let name = b"STARLING_MUTANT";
    server.windows(name.len()).any(|window| window == name)
}

/// Runs the workload until the program reports the fault in a line with all of these words. Panics
/// after three runs without such a line.
fn is_noticed(fault: &Fault, workload: &str, words: &[&str]) {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_faults() {
        eprintln!(
            "skipped: there is no starling program beside {PROGRAM}, or it was built without its \
             faults"
        );
        return;
    }

    let dir = folder();
    let mut last = String::new();

    for _ in 0..3 {
        if let Some(output) = output_of_failure(fault, dir.path(), workload) {
            if output.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            last = output;
        }
    }

    panic!("{} was not detected: {last}", fault.mutant);
}

#[test]
fn a_slow_but_correct_server_passes() {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_faults() {
        return;
    }

    for (failpoints, workload) in [
        ("committed=wait:200/10", "--replicas 2 churn --seconds 3 --people 12"),
        ("snapshot_read=wait:50/2", "--embedded churn --seconds 3 --people 12"),
        ("", "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 4"),
    ] {
        let fault = Fault { mutant: "", failpoints };
        assert_eq!(output_of_failure(&fault, folder().path(), workload), None);
    }
}

macro_rules! mutants {
    ($($name:ident: $mutant:literal, $failpoints:literal, $workload:literal, $words:expr;)+) => {
        $(#[test]
        fn $name() {
            is_noticed(&Fault { mutant: $mutant, failpoints: $failpoints }, $workload, &$words);
        })+
    };
}

mutants! {
    acknowledging_before_the_commit_is_noticed: "ack_before_commit", "",
        "--embedded sends --seconds 2 --senders 8", ["chat ", "was acknowledged for", "(rev "];
    delivering_twice_is_noticed: "seen_again", "",
        "--replicas 2 sends --seconds 1 --senders 4 --peers-online",
        ["chat ", "told again", "(rev "];
    ignoring_client_ids_is_noticed: "dedupe_forgotten", "",
        "--embedded storm --seconds 2 --people 16", ["a key makes one message", "chat ", "(rev "];
    sending_events_to_former_members_is_noticed: "cached_membership", "",
        "--embedded churn --seconds 3 --people 16", ["chat ", "no member then", "(rev "];
    delivering_in_arrival_order_is_noticed: "arrival_order", "committed=wait:200/10",
        "--replicas 2 churn --seconds 2 --people 12",
        ["told everything, in order, once", "chat ", "(rev "];
    not_fetching_events_that_the_bus_lost_is_noticed: "no_gap_fill", "committed=wait:200/10",
        "--replicas 2 churn --seconds 2 --people 12", ["chat ", "(rev ", "(device "];
    healing_backwards_is_noticed: "heal_backwards", "committed=wait:400/5",
        "--replicas 2 churn --seconds 3 --people 12",
        ["told everything, in order, once", "chat ", "(rev "];
    subscribing_after_the_snapshot_is_noticed: "subscribe_after_fetch", "",
        "--embedded churn --seconds 4 --people 12", ["chat ", "(rev ", "(device "];
    dropping_events_during_a_sync_is_noticed: "no_hold", "snapshot_read=wait:50/2",
        "--embedded churn --seconds 4 --people 12", ["chat ", "(rev ", "(device "];
    dropping_frames_for_a_slow_consumer_is_noticed: "drop_on_overflow", "",
        "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 4",
        ["chat ", "(rev "];
    leaving_the_sockets_of_an_ended_session_open_is_noticed: "revoke_without_closing", "",
        "--embedded churn --seconds 8 --people 6",
        ["a revoked session is good for nothing", "chat ", "(rev "];
    assigning_ids_before_the_commit_is_noticed: "sequence_order", "",
        "--replicas 2 churn --seconds 3 --people 12", ["chat ", "(rev ", "(device "];
    caching_revoked_tokens_is_noticed: "stale_sessions", "",
        "--replicas 2 churn --seconds 10 --people 12", ["a revoked session is good for nothing"];
    letting_an_outbox_grow_is_noticed: "unbounded_outbox", "",
        "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 8",
        ["chat ", "waited for a member", "(rev "];
    not_resubscribing_after_a_cut_is_noticed: "no_resubscribe", "",
        "--replicas 2 cut --seconds 3 --people 12", ["chat ", "(rev ", "(device "];
    not_resyncing_when_a_replica_dies_is_noticed: "no_look_on_death", "committed=wait:600/1",
        "--replicas 2 crash --seconds 2 --people 48", ["chat ", "(rev ", "(device "];
    keeping_users_of_a_dead_replica_online_is_noticed: "ghosts_never_expire", "",
        "--replicas 2 crash --seconds 2 --people 16", ["never told that user", "went offline"];
}
