//! The program as an operator runs it: it starts a server of its own, loads it, proves the run and
//! removes everything.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at a fault, and says what it skips"
)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{PROGRAM, folder};

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).current_dir(dir).env("TMPDIR", dir).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What the workloads of the only deployment measured, from `run.json`.
fn outcomes(dir: &Path) -> Vec<serde_json::Value> {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap();
    json["runs"][0]["outcomes"].as_array().unwrap().clone()
}

fn figure(outcome: &serde_json::Value, name: &str) -> f64 {
    let found = outcome["figures"].as_array().unwrap().iter().find(|it| it["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {outcome}"))["value"].as_f64().unwrap()
}

/// Whether there is a server to run; it is another crate, which may not have been built.
fn has_server() -> bool {
    let there = Path::new(PROGRAM).with_file_name("starling").exists();
    if !there {
        eprintln!("skipped: there is no starling program beside {PROGRAM}");
    }
    there
}

#[test]
fn one_command_starts_loads_proves_and_removes_a_server() {
    if !has_server() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sends = ["sends", "--seconds", "3", "--warm-up", "1", "--senders", "4", "--peers-online"];
    let files = ["--json", "run.json", "--report", "run.html", "--results", "RESULTS.md"];
    let output = run(dir.path(), &[&["local", "--embedded"], &sends[..], &files[..]].concat());
    let words = said(&output);
    assert!(output.status.success(), "{words}");
    assert!(words.contains("durable sends, closed loop") && words.contains("correct: "), "{words}");

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
    assert_eq!(left.len(), 3, "it leaves the files that were asked for and nothing else: {left:?}");
}

#[test]
fn figures_are_held_against_floors_of_the_same_moment_and_the_gate_against_committed_ratios() {
    if !has_server() {
        return;
    }
    let dir = folder();
    let inbox = ["inbox", "--seconds", "1", "--warm-up", "0", "--people", "12", "--messages", "50"];
    let output = run(
        dir.path(),
        &[&["local", "--embedded", "--floors"], &inbox[..], &["--json", "run.json"]].concat(),
    );
    let words = said(&output);
    assert!(
        output.status.success() && words.contains("pages of 50 rows read from the database"),
        "{words}"
    );
    let read = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.path().join("run.json")).unwrap()).unwrap()
    };
    let row = "embedded / inbox / list of chats";
    let held = &read()["held"][row];
    let (value, floor) = (held["value"].as_f64().unwrap(), held["floor"].as_f64().unwrap());
    assert!(0.0 < value && value < floor, "a server does more than its floor: {held}");

    let gate = |more: &[&str]| {
        run(dir.path(), &[&["gate", "run.json", "--against", "ratios.json"], more].concat())
    };
    assert!(gate(&["--accept"]).status.success());
    assert!(gate(&[]).status.success(), "a run is as good as itself");
    let mut worse = read();
    worse["held"][row]["value"] = (value * 0.7).into();
    std::fs::write(dir.path().join("run.json"), worse.to_string()).unwrap();
    let refused = gate(&[]);
    assert!(
        !refused.status.success() && said(&refused).contains(&format!("{row}: ")),
        "{}",
        said(&refused)
    );
}

#[test]
fn a_fleet_behind_one_address_is_restarted_one_by_one_while_people_write() {
    if !has_server() {
        return;
    }
    let dir = folder();
    let storm =
        ["local", "--replicas", "2", "storm", "--seconds", "2", "--warm-up", "0", "--people", "12"];
    let output = run(dir.path(), &[&storm[..], &["--json", "run.json"]].concat());
    let words = said(&output);
    assert!(output.status.success() && words.contains("correct: "), "{words}");
    let storm = &outcomes(dir.path())[0];
    let figure = |name: &str| figure(storm, name);
    assert!(figure("after a storm over 12 sockets, all are live again") > 0.0);
    assert!(figure("restart of 2, one by one") > 2.0, "each is unready for a second");
    assert!(figure("sends during the restart, p99 of the worst second") > 0.0);
    let roles = storm["spent"]["roles"].as_array().unwrap();
    let used =
        |role: &str| roles.iter().find(|it| it["role"] == role).unwrap()["cpu_s"].as_f64().unwrap();
    assert!(used("balancer") > 0.0 && used("server") > used("balancer"), "{roles:?}");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["run.json"], "nothing else is left");
}

#[test]
fn what_a_killed_replica_had_not_told_and_what_the_bus_lost_is_heard() {
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
    // A server that can be slow on purpose tells what it committed so late that the killed one had
    // not.
    let output = command.env("STARLING_FAILPOINTS", "committed=wait:200/1").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let outcomes = outcomes(dir.path());
    let heard = figure(&outcomes[0], "after a crash, everybody has everything");
    assert!((0.5..10.0).contains(&heard), "{heard} s");
    let offline = figure(&outcomes[0], "after a crash, 4 who hung up are shown offline");
    assert!((0.1..20.0).contains(&offline), "{offline} s");
    assert!(figure(&outcomes[1], "subscribed connections cut") >= 3.0);
}

#[test]
fn what_breaks_replicas_is_refused_where_there_are_none() {
    let dir = folder();
    let output = run(dir.path(), &["local", "--replicas", "2", "--embedded", "crash"]);
    assert!(
        !output.status.success() && said(&output).contains("local --replicas 2 crash"),
        "{}",
        said(&output)
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
    assert!(said(&output).contains("--i-own-this"), "{}", said(&output));
}
