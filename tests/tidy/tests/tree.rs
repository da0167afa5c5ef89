//! The tree keeps its own rules: layers, where SQL, Redis and axum may be, no leftovers. Each rule
//! is a function of a file's path and text, so that it can be shown to fail.

#![expect(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use starling_tidy::lexer::{self, Lexed};

/// Lines of a Rust file at most: what one can keep in mind.
const LINES_MAX: usize = 500;

/// A rule: everything in one file that breaks it.
type Rule = fn(path: &str, text: &str) -> Vec<String>;

const RUST_RULES: &[Rule] =
    &[imports_point_down, sql_is_in_store, crates_are_in_their_place, no_macros_of_haste, is_short];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Every file of the tree that people write, by its path from the root.
fn files() -> Vec<(String, PathBuf)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if !name.starts_with('.')
                    && !["target", "data", "node_modules"].contains(&name.as_str())
                {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.into_iter().map(|path| (relative(&path), path)).collect()
}

/// The layers, lowest first. What is beside them is in [`beside`].
const LAYERS: &[&[&str]] = &[
    &["model"],
    &["wire"],
    &["store", "cluster", "blob"],
    &["presence"],
    &["service", "hub"],
    &["api", "gateway"],
    &["listener"],
    &["server"],
    &["cli"],
    &["main"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// What modules beside the layers may import, and who may import them.
fn beside(module: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    match module {
        "metrics" => Some((
            &["model"],
            &[
                "store",
                "cluster",
                "blob",
                "presence",
                "service",
                "hub",
                "api",
                "gateway",
                "listener",
                "server",
                "telemetry",
            ],
        )),
        "tasks" => Some((&[], &["cluster", "service", "hub", "api", "gateway", "server"])),
        "config" => Some((&["model", "store", "cluster"], &["server", "cli", "main", "telemetry"])),
        "telemetry" => Some((&["model", "config", "metrics"], &["server", "cli", "main"])),
        _ => None,
    }
}

/// Imports that point down and are not allowed all the same: requests reach the database by a
/// service.
const NOT_DIRECTLY: &[(&str, &str)] = &[("api", "store"), ("gateway", "store")];

/// Modules whose files must not import each other in circles.
const WITHOUT_CIRCLES: &[&str] = &["service", "api"];

fn may_import(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    if NOT_DIRECTLY.contains(&(from, to)) {
        return false;
    }
    match (beside(from), beside(to), layer(from), layer(to)) {
        (Some((imports, _)), ..) => imports.contains(&to),
        (None, Some((_, importers)), ..) => importers.contains(&from),
        (None, None, Some(from), Some(to)) => to < from,
        _ => false,
    }
}

/// The module of the crate's first level that a file belongs to; none for the map itself and for
/// tests.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let first = inside.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib").then_some(module)
}

fn imports_point_down(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return Vec::new() };
    let code = Lexed::new(text).code;
    let root_name = if module == "main" { "starling::" } else { "crate::" };
    let mut broken: Vec<String> = lexer::paths_after(&code, root_name)
        .into_iter()
        .filter(|imported| !may_import(module, imported))
        .map(|imported| format!("{module} must not import {imported}: imports point down only"))
        .collect();
    // `super` from the first level, or twice from the second, is the root by another name.
    let depth = path.matches('/').count() - usize::from(path.ends_with("/mod.rs"));
    let around = "super::".repeat(depth);
    for name in lexer::paths_after(&code, &around) {
        if (layer(&name).is_some() || beside(&name).is_some()) && name != module {
            broken.push(format!("{module} imports {name} by way of super: write crate::{name}"));
        }
    }
    broken
}

/// Which of these files of one directory import which, by the names of their modules. `mod` imports
/// all of them.
fn imports_between(directory: &str, files: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeSet<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
    let imports = files.iter().map(|(name, text)| {
        let code = Lexed::new(text).code;
        let mut paths = lexer::paths_after(&code, "super::");
        paths.extend(lexer::paths_after(&code, &format!("crate::{directory}::")));
        paths.retain(|path| path != "super");

        let imported = match *name {
            "mod" => names.iter().filter(|it| *it != "mod").cloned().collect(),
            // What is no file is an item of `mod`.
            _ => paths
                .into_iter()
                .map(|it| if names.contains(&it) { it } else { "mod".to_owned() })
                .collect(),
        };
        ((*name).to_owned(), imported)
    });
    imports.collect()
}

/// The files that import each other in circles, and the files that import those.
fn in_circles(mut imports: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    loop {
        let is_leaf =
            |imported: &BTreeSet<String>| imported.iter().all(|it| !imports.contains_key(it));
        let leaves: Vec<String> =
            imports.iter().filter(|(_, it)| is_leaf(it)).map(|(name, _)| name.clone()).collect();
        if leaves.is_empty() {
            return imports.into_keys().collect();
        }
        imports.retain(|name, _| !leaves.contains(name));
    }
}

fn sql_is_in_store(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") || path.starts_with("src/store/") {
        return Vec::new();
    }
    let lexed = Lexed::new(text);
    let mut broken: Vec<String> = lexed
        .literals
        .iter()
        .filter(|literal| looks_like_sql(literal))
        .map(|literal| format!("SQL outside of store: {literal:?}"))
        .collect();
    let may_derive = ["src/model/id.rs", "src/model/clock.rs"].contains(&path);
    for name in lexer::paths_after(&lexed.code, "sqlx::") {
        if !(may_derive && name == "Type") {
            broken.push(format!("sqlx::{name} outside of store"));
        }
    }
    broken
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

fn crates_are_in_their_place(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") {
        return Vec::new();
    }
    let code = Lexed::new(text).code;
    let mut broken = Vec::new();
    for (name, places) in [
        ("redis", &["src/cluster/redis"][..]),
        ("bb8_redis", &["src/cluster/redis"][..]),
        ("axum", &["src/api/", "src/gateway/", "src/server", "src/listener"][..]),
    ] {
        let named = !lexer::paths_after(&code, &format!("{name}::")).is_empty();
        if named && !places.iter().any(|place| path.starts_with(place)) {
            broken.push(format!("{name}:: belongs in {}", places.join(", ")));
        }
    }
    broken
}

fn no_macros_of_haste(_path: &str, text: &str) -> Vec<String> {
    let code = Lexed::new(text).code;
    let mut broken = Vec::new();
    for word in ["todo!", "unimplemented!", "#[allow(", "#![allow(", "cfg_attr(test, allow("] {
        if code.contains(word) {
            broken.push(format!("{word}: finish it, or say why with #[expect(…, reason)]"));
        }
    }
    broken
}

fn is_short(_path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LINES_MAX { vec![format!("{lines} lines; {LINES_MAX} at most")] } else { Vec::new() }
}

/// Notes to come back, in any file. The words are put together here so that this file has none.
fn no_leftover_notes(_path: &str, text: &str) -> Vec<String> {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = text.split(|c| !is_word(c)).collect();
    notes
        .iter()
        .filter(|note| words.contains(*note))
        .map(|note| format!("a leftover {note}"))
        .collect()
}

#[test]
fn the_tree_keeps_its_rules() {
    let mut broken = Vec::new();
    let mut rust_files = 0;
    for (path, file) in files() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let mut say = |sentences: Vec<String>| {
            broken.extend(sentences.iter().map(|it| format!("{path}: {it}")))
        };
        say(no_leftover_notes(&path, &text));
        if Path::new(&path).extension().is_some_and(|it| it == "rs") {
            rust_files += 1;
            for rule in RUST_RULES {
                say(rule(&path, &text));
            }
        }
    }
    assert!(rust_files > 50, "the tree was not found: {rust_files} files");
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn files_of_a_module_do_not_import_each_other_in_circles() {
    let files = files();
    for module in WITHOUT_CIRCLES {
        let directory = format!("src/{module}/");
        let of_module: Vec<(String, String)> = files
            .iter()
            .filter_map(|(path, file)| {
                let name = path.strip_prefix(&directory)?.strip_suffix(".rs")?;
                Some((name.to_owned(), std::fs::read_to_string(file).unwrap()))
            })
            .collect();
        assert!(of_module.len() > 5, "the files of {module} were not found");

        let texts: Vec<(&str, &str)> =
            of_module.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(
            in_circles(imports_between(module, &texts)),
            Vec::<String>::new(),
            "in {module}"
        );
    }
}

#[test]
fn circles_of_imports_are_found() {
    let circles = |files: &[(&str, &str)]| in_circles(imports_between("service", files));
    let fine =
        [("mod", "mod a; mod b;"), ("a", "use super::b::B;"), ("b", "mod tests { use super::*; }")];
    assert_eq!(circles(&fine), Vec::<String>::new());
    assert_eq!(
        circles(&[("a", "use super::b::B;"), ("b", "use crate::service::a::A;")]),
        ["a", "b"]
    );
    assert_eq!(circles(&[("mod", "mod a;"), ("a", "use super::Service;")]), ["a", "mod"]);
    assert_eq!(
        circles(&[("a", "use super::{b, c::C};"), ("b", ""), ("c", "super::a::f()")]),
        ["a", "c"]
    );
}

#[test]
fn every_migration_is_there_for_both_databases() {
    let names = |database: &str| -> BTreeSet<String> {
        let dir = root().join("migrations").join(database);
        std::fs::read_dir(dir)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert!(!names("postgres").is_empty());
    assert_eq!(names("postgres"), names("sqlite"));
}

#[test]
fn every_deliberate_fault_of_the_server_has_a_test_that_detects_it() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (faults, tests) = (read("src/model/faults.rs"), read("loadtest/tests/mutants.rs"));
    let (_, mutants) = faults.split_once("Mutant {").unwrap();
    let (mutants, _) = mutants.split_once("\n}").unwrap();

    let words: Vec<&str> = mutants.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(words.len() > 10, "the list of faults was not found: {words:?}");
    for word in words {
        assert!(tests.contains(&format!("\"{word}\"")), "no test detects {word}");
    }
}

#[test]
fn every_module_of_the_map_has_its_place_in_the_layers() {
    let map = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules =
        map.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    for module in modules.map(|module| module.trim_end_matches(';')) {
        assert!(layer(module).is_some() || beside(module).is_some(), "{module} is in no layer");
    }
}

#[test]
fn imports_that_point_up_or_sideways_are_found() {
    let breaks = |path, text| assert!(!imports_point_down(path, text).is_empty(), "{path}: {text}");
    breaks("src/model/chat.rs", "use crate::store::Store;");
    breaks("src/model/chat.rs", "use crate::metrics;");
    breaks("src/store/chats.rs", "use crate::cluster::Bus;");
    breaks("src/wire/bus.rs", "use crate::cluster::redis::ReplicaId;");
    breaks("src/wire/close.rs", "use crate::hub::CloseReason;");
    breaks("src/model/event.rs", "use crate::wire::ServerFrame;");
    breaks("src/store/chats.rs", "fn f() { crate::service::g() }");
    breaks("src/hub/mod.rs", "use crate::service::Service;");
    breaks("src/service/mod.rs", "use crate::{model::Error, hub::Hub};");
    breaks("src/api/mod.rs", "use crate::gateway;");
    breaks("src/gateway/mod.rs", "use crate::{\n    api::{self, Api},\n    model::Error,\n};");
    breaks("src/api/chats.rs", "use crate::config::Config;");
    breaks("src/api/chats.rs", "use crate::store::Store;");
    breaks("src/gateway/sync.rs", "use crate::{hub::Hub, store::Changes};");
    breaks("src/service/mod.rs", "use crate::telemetry;");
    breaks("src/api/chats.rs", "use crate::server::Server;");
    breaks("src/service/chats.rs", "use super::super::gateway;");
    breaks("src/metrics.rs", "use super::service::Service;");
    breaks("src/main.rs", "use starling::nonsense::Thing;");
    breaks("src/model/mod.rs", "pub use crate :: hub :: Hub;");
}

#[test]
fn imports_that_point_down_are_let_through() {
    let fine = |path, text| {
        assert_eq!(imports_point_down(path, text), Vec::<String>::new(), "{path}: {text}")
    };
    fine("src/cli.rs", "use crate::{config::Config, server::Server, store::Store};");
    fine("src/server.rs", "use crate::api::{self, Api}; use crate::listener;");
    fine(
        "src/api/chats.rs",
        "use super::extract::Body; use crate::service::Service; use crate::metrics;",
    );
    fine("src/service/mod.rs", "// use crate::gateway\nuse crate::store::Store;");
    fine("src/service/mod.rs", "const S: &str = \"crate::gateway::x\";");
    fine(
        "src/store/mod.rs",
        "macro_rules! m { () => { $crate::store::Db::Sqlite } } mod tests { use super::*; }",
    );
    fine("src/wire/bus.rs", "use crate::model::Event;");
    fine("src/cluster/redis/bus.rs", "use crate::wire::bus::BusHeader;");
    fine("src/lib.rs", "pub mod api;");
    fine("tests/it/store.rs", "use starling::api;");
}

#[test]
fn sql_and_sqlx_outside_of_store_are_found() {
    let breaks = |path, text| assert!(!sql_is_in_store(path, text).is_empty(), "{path}: {text}");
    breaks("src/service/chats.rs", r#"const A: &str = "SELECT id FROM chats";"#);
    breaks("src/service/chats.rs", "const A: &str = \"\n  update chats\n  set rev = 1\";");
    breaks("src/api/chats.rs", r#"f("DELETE FROM chats")"#);
    breaks("src/hub/mod.rs", r#"f("INSERT INTO chats VALUES (1)")"#);
    breaks("src/hub/mod.rs", r#"f("SELECT 1")"#);
    breaks("src/service/chats.rs", "sqlx::query(sql)");
    breaks("src/model/chat.rs", "#[derive(sqlx::Type)] struct A;");
    breaks("src/model/id.rs", "fn f(e: sqlx::Error) {}");
    let fine = |path, text| {
        assert_eq!(sql_is_in_store(path, text), Vec::<String>::new(), "{path}: {text}")
    };
    fine("src/store/chats.rs", r#"sqlx::query("SELECT id FROM chats")"#);
    fine("src/model/id.rs", "#[derive(sqlx::Type)] struct A;");
    fine("src/api/mod.rs", r#"f("DELETE", "select it", "an update")"#);
    fine("src/api/mod.rs", "/// SELECT id FROM chats\nfn f() {}");
}

#[test]
fn crates_out_of_their_place_are_found() {
    let breaks =
        |path, text| assert!(!crates_are_in_their_place(path, text).is_empty(), "{path}: {text}");
    breaks("src/hub/mod.rs", "use redis::Client;");
    breaks("src/cluster/memory.rs", "use bb8_redis::bb8::Pool;");
    breaks("src/service/mod.rs", "use axum::Router;");
    breaks("src/cli.rs", "fn f(r: axum::Router) {}");
    let fine = |path, text| {
        assert_eq!(crates_are_in_their_place(path, text), Vec::<String>::new(), "{path}: {text}")
    };
    fine("src/cluster/redis/bus.rs", "use redis::Client;");
    fine("src/listener.rs", "use axum::Router;");
    fine("src/gateway/mod.rs", "use axum::extract::ws::WebSocket; use crate::cluster::redis_free;");
    fine("src/server.rs", "use crate::cluster::redis::RedisBus;");
}

#[test]
fn haste_is_found() {
    let breaks = |text: &str| assert!(!no_macros_of_haste("src/a.rs", text).is_empty(), "{text}");
    breaks("fn f() { todo!() }");
    breaks("fn f() { unimplemented!(\"later\") }");
    breaks("#[allow(dead_code)] fn f() {}");
    breaks("#![allow(unused)]");
    assert!(
        no_macros_of_haste("src/a.rs", "// todo! is banned\nconst A: &str = \"todo!()\";")
            .is_empty()
    );
    let note = concat!("// TO", "DO: later");
    assert!(!no_leftover_notes("a.md", note).is_empty());
    assert!(!no_leftover_notes("a.sql", concat!("-- XX", "X")).is_empty());
    assert!(no_leftover_notes("a.sh", "mktemp a.XXXXXX; todo list").is_empty());
    assert!(!is_short("src/a.rs", &"\n".repeat(LINES_MAX + 1)).is_empty());
    assert!(is_short("src/a.rs", &"\n".repeat(LINES_MAX)).is_empty());
}
