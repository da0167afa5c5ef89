//! The rules of the source tree, applied to the tree.

#![expect(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use starling_tidy::circles::Directory;
use starling_tidy::{edges, rules};

/// Directories whose files must not import an item that their `mod.rs` defines.
const WITHOUT_IMPORTS_OF_MOD: &[&str] = &["api", "gateway", "service", "wire"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Every file of the tree that is not generated, with its path from the root.
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

/// The text of each Rust file below `src/`, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let is_source = |(path, _): &(String, PathBuf)| {
        path.starts_with("src/") && Path::new(path).extension().is_some_and(|it| it == "rs")
    };
    let sources: BTreeMap<String, String> = files()
        .into_iter()
        .filter(is_source)
        .map(|(path, file)| (path, std::fs::read_to_string(file).unwrap()))
        .collect();
    assert!(sources.len() > 50, "the tree was not found: {} files", sources.len());
    sources
}

#[test]
fn the_tree_keeps_its_rules() {
    let mut broken = Vec::new();
    for (path, file) in files() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let mut report = |violations: Vec<String>| {
            broken.extend(violations.iter().map(|it| format!("{path}: {it}")));
        };
        report(rules::no_leftover_notes(&path, &text));
        if Path::new(&path).extension().is_some_and(|it| it == "rs") {
            for rule in rules::RUST {
                report(rule(&path, &text));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_table_of_edges_points_up_and_each_edge_is_used() {
    let names: Vec<&str> = edges::EDGES.iter().map(|(name, _)| *name).collect();
    let sources = sources();
    for (index, (module, imports)) in edges::EDGES.iter().enumerate() {
        let used: BTreeSet<String> = sources
            .iter()
            .filter(|(path, _)| edges::module_of(path) == Some(module))
            .flat_map(|(path, text)| edges::imported(path, text))
            .collect();
        for import in *imports {
            assert!(
                names[..index].contains(import),
                "{module} imports {import}, which is below it"
            );
            assert!(used.contains(*import), "no file of {module} imports {import}");
        }
    }
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    // The files of each directory, by the module that they belong to.
    let mut directories: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for (path, text) in sources() {
        let inside = path.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap().to_owned();
        let parts: Vec<&str> = inside.split('/').collect();
        let is_declaring = |depth: usize| {
            let is_mod = parts.len() == depth + 1 && parts[depth] == "mod";
            is_mod || parts.len() == depth
        };
        for depth in 1..=parts.len() {
            let directory = parts[..depth].join("/");
            if !root().join("src").join(&directory).is_dir() {
                continue;
            }
            let name = if is_declaring(depth) { "mod" } else { parts[depth] };
            // A wrong algorithm and the right one refer to each other.
            if name == "mutants" {
                continue;
            }
            directories.entry(directory).or_default().push((name.to_owned(), text.clone()));
        }
    }

    let mut circles = Vec::new();
    for (directory, files) in &directories {
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let path = directory.replace('/', "::");
        let strict = WITHOUT_IMPORTS_OF_MOD.contains(&directory.as_str());
        let found = Directory { path: &path, files: &files }.in_circles(strict);
        if !found.is_empty() {
            circles.push(format!("{directory}: {}", found.join(", ")));
        }
    }
    assert!(directories.len() > 10, "the directories were not found");
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

#[test]
fn every_migration_exists_for_both_databases() {
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
