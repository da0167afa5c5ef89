//! Tests of the program as an operator runs it: it starts a server, loads it, checks the run, and
//! removes all files but its results.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test panics on a failure, and prints why it is skipped"
)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{PROGRAM, folder};

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).current_dir(dir).env("TMPDIR", dir).output().unwrap()
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The results of all workloads of the only deployment, from `run.json`.
fn outcomes(dir: &Path) -> Vec<serde_json::Value> {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap();
    json["runs"][0]["outcomes"].as_array().unwrap().clone()
}

fn figure(outcome: &serde_json::Value, name: &str) -> f64 {
    let found = outcome["figures"].as_array().unwrap().iter().find(|it| it["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {outcome}"))["value"].as_f64().unwrap()
}

/// Whether there is a server program. It is built by another crate, perhaps not yet.
fn has_server() -> bool {
    let exists = Path::new(PROGRAM).with_file_name("starling").exists();
    if !exists {
        eprintln!("skipped: there is no starling program beside {PROGRAM}");
    }
    exists
}

#[test]
fn one_command_starts_loads_checks_and_removes_a_server() {
    if !has_server() {
        return;
    }

    let dir = tempfile::tempdir().unwrap();
    let sends = ["sends", "--seconds", "3", "--warm-up", "1", "--senders", "4", "--peers-online"];
    let files = ["--json", "run.json", "--report", "run.html", "--results", "RESULTS.md"];
    let output = run(dir.path(), &[&["local", "--embedded"], &sends[..], &files[..]].concat());
    let text = text_of(&output);

    assert!(output.status.success(), "{text}");
    assert!(text.contains("durable sends, closed loop") && text.contains("correct: "), "{text}");

    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&read("run.json")).unwrap();
    let sends = &json["runs"][0]["outcomes"][0];
    assert_eq!(
        (sends["workload"].as_str(), sends["violations"].as_u64()),
        (Some("sends"), Some(0))
    );
    assert!(sends["meters"][0]["count"].as_u64().unwrap() > 0, "{sends}");
    assert!(
        sends["figures"].as_array().unwrap().iter().any(|it| it["name"] == "CPU of server a send")
    );
    assert!(read("run.html").contains("<svg") && !read("run.html").contains("<script"));
    assert!(read("RESULTS.md").contains("| sends | durable sends, closed loop |"));

    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "the program must leave only the requested files: {left:?}");
}

#[test]
fn figures_are_compared_with_floors_and_the_gate_compares_committed_ratios() {
    if !has_server() {
        return;
    }

    let dir = folder();
    let inbox = ["inbox", "--seconds", "1", "--warm-up", "0", "--people", "12", "--messages", "50"];

    let output = run(
        dir.path(),
        &[&["local", "--embedded", "--floors"], &inbox[..], &["--json", "run.json"]].concat(),
    );

    let text = text_of(&output);
    assert!(
        output.status.success() && text.contains("pages of 50 rows read from the database"),
        "{text}"
    );

    let read = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.path().join("run.json")).unwrap()).unwrap()
    };
    let row = "embedded / inbox / list of chats";
    let held = &read()["held"][row];
    let (value, floor) = (held["value"].as_f64().unwrap(), held["floor"].as_f64().unwrap());

    assert!(0.0 < value && value < floor, "a figure must be between 0 and its floor: {held}");

    let gate = |more: &[&str]| {
        run(dir.path(), &[&["gate", "run.json", "--against", "ratios.json"], more].concat())
    };
    assert!(gate(&["--accept"]).status.success());
    assert!(gate(&[]).status.success(), "a run must pass against its own ratios");

    let mut worse = read();
    worse["held"][row]["value"] = (value * 0.7).into();
    std::fs::write(dir.path().join("run.json"), worse.to_string()).unwrap();

    let refused = gate(&[]);
    assert!(
        !refused.status.success() && text_of(&refused).contains(&format!("{row}: ")),
        "{}",
        text_of(&refused)
    );
}

#[test]
fn a_rolling_restart_behind_one_address_keeps_the_run_correct() {
    if !has_server() {
        return;
    }

    let dir = folder();
    let storm =
        ["local", "--replicas", "2", "storm", "--seconds", "2", "--warm-up", "0", "--people", "12"];
    let output = run(dir.path(), &[&storm[..], &["--json", "run.json"]].concat());
    let text = text_of(&output);

    assert!(output.status.success() && text.contains("correct: "), "{text}");

    let storm = &outcomes(dir.path())[0];
    let figure = |name: &str| figure(storm, name);
    assert!(figure("after a storm over 12 sockets, all are live again") > 0.0);
    assert!(figure("restart of 2, one by one") > 2.0, "each replica is not ready for a second");
    assert!(figure("sends during the restart, p99 of the worst second") > 0.0);

    let roles = storm["spent"]["roles"].as_array().unwrap();
    let used =
        |role: &str| roles.iter().find(|it| it["role"] == role).unwrap()["cpu_s"].as_f64().unwrap();
    assert!(used("balancer") > 0.0 && used("server") > used("balancer"), "{roles:?}");

    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["run.json"], "the program must leave only the requested file");
}

#[test]
fn unpublished_events_of_a_killed_replica_and_events_lost_by_the_bus_arrive() {
    if !has_server() {
        return;
    }

    let dir = folder();
    let args = [
        "local",
        "--replicas",
        "2",
        "crash",
        "cut",
        "--seconds",
        "3",
        "--warm-up",
        "0",
        "--people",
        "16",
    ];

    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .args(["--json", "run.json"])
        .current_dir(dir.path())
        .env("TMPDIR", dir.path());

    // If the server has its faults compiled in, it publishes 200 ms after each commit. So the
    // killed replica has commits that it did not publish.
    let output = command.env("STARLING_FAILPOINTS", "committed=wait:200/1").output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));

    let outcomes = outcomes(dir.path());
    let healed = figure(&outcomes[0], "after a crash, everybody has everything");
    assert!((0.5..10.0).contains(&healed), "{healed} s");

    let offline = figure(&outcomes[0], "after a crash, 4 who hung up are shown offline");
    assert!((0.1..20.0).contains(&offline), "{offline} s");
    assert!(figure(&outcomes[1], "subscribed connections cut") >= 3.0);
}

#[test]
fn crash_is_refused_for_an_embedded_server() {
    let dir = folder();
    let output = run(dir.path(), &["local", "--replicas", "2", "--embedded", "crash"]);
    assert!(
        !output.status.success() && text_of(&output).contains("local --replicas 2 crash"),
        "{}",
        text_of(&output)
    );
}

#[test]
fn a_target_that_is_not_this_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(
        dir.path(),
        &["run", "sends", "--target", "http://192.0.2.1:80", "--accounts", "there-is-none.jsonl"],
    );
    assert!(!output.status.success());
    assert!(text_of(&output).contains("--i-own-this"), "{}", text_of(&output));
}
