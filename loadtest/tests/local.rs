//! The program as an operator runs it: it starts a server of its own, loads it, proves the run and removes everything.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at a fault, and says what it skips")]

use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_starling-loadtest");

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).current_dir(dir).env("TMPDIR", dir).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn one_command_starts_loads_proves_and_removes_a_server() {
    if !Path::new(PROGRAM).with_file_name("starling").exists() {
        // The server is another crate, which may not have been built.
        eprintln!("skipped: there is no starling program beside {PROGRAM}");
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
    assert_eq!((sends["workload"].as_str(), sends["violations"].as_u64()), (Some("sends"), Some(0)));
    assert!(sends["meters"][0]["count"].as_u64().unwrap() > 0, "{sends}");
    assert!(sends["figures"].as_array().unwrap().iter().any(|it| it["name"] == "CPU of server a send"));
    assert!(read("run.html").contains("<svg") && !read("run.html").contains("<script"));
    assert!(read("RESULTS.md").contains("| sends | durable sends, closed loop |"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "it leaves the files that were asked for and nothing else: {left:?}");
}

#[test]
fn a_target_that_is_not_this_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        run(dir.path(), &["run", "sends", "--target", "http://192.0.2.1:80", "--accounts", "there-is-none.jsonl"]);
    assert!(!output.status.success());
    assert!(said(&output).contains("--i-own-this"), "{}", said(&output));
}
