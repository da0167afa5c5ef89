//! A program that can't fail proves nothing: each of these deliberate faults of the server must
//! make it fail, with a sentence that says where. They are those of the server's feature `faults`;
//! without it there is nothing to notice.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at a fault, and says what it skips"
)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::{PROGRAM, folder};

/// One at a time: two would only make each other slow.
static TURN: Mutex<()> = Mutex::new(());

/// What the server does wrong, and how that is made to happen often.
struct Wrong {
    mutant: &'static str,
    failpoints: &'static str,
}

/// Runs `local` on such a server. What it said, unless all was well.
fn complaint(wrong: &Wrong, dir: &Path, workload: &str) -> Option<String> {
    let output = Command::new(PROGRAM)
        .arg("local")
        .args(workload.split(' '))
        .args(["--warm-up", "0"])
        .current_dir(dir)
        .env("TMPDIR", dir)
        .env("STARLING_MUTANT", wrong.mutant)
        .env("STARLING_FAILPOINTS", wrong.failpoints)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("NOT CORRECT"), "it could not run: {said}");
    (!output.status.success()).then_some(said)
}

/// Whether the server beside the program can be wrong on purpose.
fn has_faults() -> bool {
    let server = std::fs::read(Path::new(PROGRAM).with_file_name("starling")).unwrap_or_default();
    let name = b"STARLING_MUTANT";
    server.windows(name.len()).any(|window| window == name)
}

/// Runs until it is noticed, at most three times, by a sentence with all of these words.
fn is_noticed(wrong: &Wrong, workload: &str, words: &[&str]) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_faults() {
        eprintln!(
            "skipped: the starling program beside {PROGRAM} is not there, or was built without its faults"
        );
        return;
    }
    let dir = folder();
    let mut last = String::new();
    for _ in 0..3 {
        if let Some(said) = complaint(wrong, dir.path(), workload) {
            if said.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            last = said;
        }
    }
    panic!("{} survives: {last}", wrong.mutant);
}

#[test]
fn of_a_server_that_is_only_slow_at_the_same_points_nothing_is_said() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_faults() {
        return;
    }
    for (failpoints, workload) in [
        ("committed=wait:200/10", "--replicas 2 churn --seconds 3 --people 12"),
        ("snapshot_read=wait:50/2", "--embedded churn --seconds 3 --people 12"),
        ("", "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 4"),
    ] {
        assert_eq!(complaint(&Wrong { mutant: "", failpoints }, folder().path(), workload), None);
    }
}

macro_rules! mutants {
    ($($name:ident: $mutant:literal, $failpoints:literal, $workload:literal, $words:expr;)+) => {
        $(#[test]
        fn $name() {
            is_noticed(&Wrong { mutant: $mutant, failpoints: $failpoints }, $workload, &$words);
        })+
    };
}

mutants! {
    acknowledging_before_the_commit_is_noticed: "ack_before_commit", "",
        "--embedded sends --seconds 2 --senders 8", ["chat ", "was acknowledged for", "(rev "];
    delivering_twice_is_noticed: "seen_again", "",
        "--replicas 2 sends --seconds 1 --senders 4 --peers-online", ["chat ", "told again", "(rev "];
    forgetting_client_ids_is_noticed: "dedupe_forgotten", "",
        "--embedded storm --seconds 2 --people 16", ["a key makes one message", "chat ", "(rev "];
    telling_who_left_is_noticed: "cached_membership", "",
        "--embedded churn --seconds 3 --people 16", ["chat ", "no member then", "(rev "];
    delivering_as_it_comes_is_noticed: "arrival_order", "committed=wait:200/10",
        "--replicas 2 churn --seconds 2 --people 12", ["told everything, in order, once", "chat ", "(rev "];
    not_fetching_what_the_bus_lost_is_noticed: "no_gap_fill", "committed=wait:200/10",
        "--replicas 2 churn --seconds 2 --people 12", ["chat ", "(rev ", "(device "];
    healing_backwards_is_noticed: "heal_backwards", "committed=wait:400/5",
        "--replicas 2 churn --seconds 3 --people 12", ["told everything, in order, once", "chat ", "(rev "];
    following_after_reading_is_noticed: "subscribe_after_fetch", "",
        "--embedded churn --seconds 4 --people 12", ["chat ", "(rev ", "(device "];
    dropping_what_happens_during_a_sync_is_noticed: "no_hold", "snapshot_read=wait:50/2",
        "--embedded churn --seconds 4 --people 12", ["chat ", "(rev ", "(device "];
    dropping_what_does_not_fit_is_noticed: "drop_on_overflow", "",
        "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 4", ["chat ", "(rev "];
    leaving_the_sockets_of_an_ended_session_open_is_noticed: "revoke_without_closing", "",
        "--embedded churn --seconds 8 --people 6", ["a revoked session is good for nothing", "chat ", "(rev "];
    placing_before_the_commit_is_noticed: "sequence_order", "",
        "--replicas 2 churn --seconds 3 --people 12", ["chat ", "(rev ", "(device "];
    remembering_dead_tokens_is_noticed: "stale_sessions", "",
        "--replicas 2 churn --seconds 10 --people 12", ["a revoked session is good for nothing"];
    letting_an_outbox_grow_is_noticed: "unbounded_outbox", "",
        "--embedded fanout --members 5 --slow 1 --rate 400 --text-bytes 3900 --seconds 8", ["chat ", "waited for a member", "(rev "];
    subscribing_to_nothing_after_a_cut_is_noticed: "no_resubscribe", "",
        "--replicas 2 cut --seconds 3 --people 12", ["chat ", "(rev ", "(device "];
    not_looking_when_a_replica_dies_is_noticed: "no_look_on_death", "committed=wait:600/1",
        "--replicas 2 crash --seconds 2 --people 48", ["chat ", "(rev ", "(device "];
    believing_the_dead_is_noticed: "ghosts_never_expire", "",
        "--replicas 2 crash --seconds 2 --people 16", ["never told that user", "went offline"];
}
