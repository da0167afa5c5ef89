//! The rules of single files. Each rule is a function of a file's path and text, so that tests can
//! show that it fails.

use std::collections::BTreeSet;

use crate::edges;
use crate::lexer::{self, Lexed};

/// The maximum number of lines of a Rust file.
pub const LINES_MAX: usize = 500;
/// The maximum number of columns of a line.
pub const COLUMNS_MAX: usize = 100;

/// A rule: a function that returns each violation in a file.
pub type Rule = fn(path: &str, text: &str) -> Vec<String>;

/// The rules of Rust files.
pub const RUST: &[Rule] =
    &[edges::forbidden, sql_is_in_store, crates_are_in_their_place, no_unfinished_code, is_short];

/// Crates that only a part of `src/` may use, with that part.
const FENCED: &[(&str, &[&str])] = &[
    ("sqlx", &["src/store/"]),
    ("redis", &["src/cluster/redis"]),
    ("bb8_redis", &["src/cluster/redis"]),
    ("hmac", &["src/cluster/redis/seal.rs"]),
    ("moka", &["src/cluster/"]),
    ("argon2", &["src/service/hasher.rs"]),
    ("axum", &["src/api/", "src/gateway/", "src/listener/", "src/server.rs"]),
    ("tokio_tungstenite", &["src/gateway/close.rs"]),
    ("hyper", &["src/listener/"]),
    ("hyper_util", &["src/listener/"]),
    ("tower", &["src/listener/"]),
    ("utoipa_axum", &["src/api/", "src/gateway/mod.rs"]),
    ("utoipa_swagger_ui", &["src/api/docs.rs"]),
    ("metrics_exporter_prometheus", &["src/telemetry.rs", "src/server.rs"]),
    ("tracing_subscriber", &["src/telemetry.rs"]),
    ("clap", &["src/main.rs", "src/cli.rs", "src/cli/", "src/config"]),
    ("time", &["src/model/clock.rs"]),
];

/// Files that may derive a trait of a fenced crate, with its path.
const DERIVES: &[(&str, &str)] =
    &[("src/model/id.rs", "sqlx::Type"), ("src/model/clock.rs", "sqlx::Type")];

/// SQL is written in `src/store/` only.
pub fn sql_is_in_store(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") || path.starts_with("src/store/") {
        return Vec::new();
    }
    let literals = Lexed::new(text).literals;
    let sql = literals.iter().filter(|literal| looks_like_sql(literal));
    sql.map(|literal| format!("SQL outside of store: {literal:?}")).collect()
}

fn looks_like_sql(literal: &str) -> bool {
    if literal.trim_start().starts_with("SELECT ") {
        return true;
    }

    let literal = literal.to_lowercase();
    let words: Vec<&str> = literal.split_whitespace().collect();
    let both = |first: &str, then: &str| {
        words
            .iter()
            .position(|word| *word == first)
            .is_some_and(|start| words[start + 1..].contains(&then))
    };

    let pair = |first: &str, then: &str| words.windows(2).any(|two| two == [first, then]);
    both("select", "from")
        || both("update", "set")
        || [
            ("insert", "into"),
            ("delete", "from"),
            ("create", "table"),
            ("drop", "table"),
            ("alter", "table"),
        ]
        .iter()
        .any(|(first, then)| pair(first, then))
}

/// Fenced crates are used in their place only.
pub fn crates_are_in_their_place(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") {
        return Vec::new();
    }

    let code = Lexed::new(text).code;
    let mut broken = Vec::new();
    for (name, places) in FENCED {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for item in lexer::paths_after(&code, &format!("{name}::")) {
            let used = format!("{name}::{item}");
            if !DERIVES.contains(&(path, used.as_str())) {
                broken.push(format!("{used} belongs in {}", places.join(", ")));
            }
        }
    }
    broken
}

/// No unfinished code, and no lint without a reason.
pub fn no_unfinished_code(_path: &str, text: &str) -> Vec<String> {
    let code = Lexed::new(text).code;
    let mut broken = Vec::new();
    for word in ["todo!", "unimplemented!", "#[allow(", "#![allow(", "cfg_attr(test, allow("] {
        if code.contains(word) {
            broken.push(format!(
                "{word}: finish the code, or give the reason with #[expect(…, reason)]"
            ));
        }
    }
    broken
}

/// Files and lines are short. A name of a test may be longer than a line.
pub fn is_short(_path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let mut broken = Vec::new();
    if lines > LINES_MAX {
        broken.push(format!("{lines} lines; {LINES_MAX} at most"));
    }
    for (number, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        let is_name = line.trim_start().starts_with("async fn ");
        if columns > COLUMNS_MAX && !is_name {
            broken.push(format!("line {}: {columns} columns; {COLUMNS_MAX} at most", number + 1));
        }
    }
    broken
}

/// Leftover notes, in any file. The words are concatenated here so that this file has none.
pub fn no_leftover_notes(_path: &str, text: &str) -> Vec<String> {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = text.split(|c| !is_word(c)).collect();
    notes
        .iter()
        .filter(|note| words.contains(*note))
        .map(|note| format!("a leftover {note}"))
        .collect()
}
