//! The imports that are allowed between the modules of the crate's first level.

use crate::lexer::{self, Lexed};

/// Each module with the modules that it imports, lowest first. A module imports only modules above
/// it in this table, so there are no circles. `main` and `cli` may change the table, with a reason
/// in ARCHITECTURE.md.
pub const EDGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("tasks", &[]),
    ("metrics", &["model"]),
    ("wire", &["model"]),
    ("store", &["model", "metrics"]),
    ("cluster", &["model", "tasks", "metrics", "wire"]),
    ("config", &["model", "store", "cluster"]),
    ("telemetry", &["metrics", "config"]),
    ("presence", &["model", "metrics", "store", "cluster"]),
    ("hub", &["model", "tasks", "metrics", "wire", "store", "cluster", "presence"]),
    ("service", &["model", "tasks", "metrics", "store", "cluster"]),
    ("worker", &["model", "metrics", "store", "cluster", "service"]),
    // Requests reach the store through a service.
    ("api", &["model", "tasks", "metrics", "service"]),
    ("gateway", &["model", "tasks", "metrics", "wire", "presence", "hub", "service"]),
    ("listener", &["model", "metrics", "service"]),
    (
        "server",
        &[
            "model",
            "tasks",
            "wire",
            "store",
            "cluster",
            "config",
            "telemetry",
            "presence",
            "hub",
            "service",
            "worker",
            "api",
            "gateway",
            "listener",
        ],
    ),
    ("cli", &["model", "wire", "store", "cluster", "config", "telemetry", "listener", "server"]),
    ("main", &["cli"]),
];

/// The modules that `module` may import.
pub fn allowed(module: &str) -> Option<&'static [&'static str]> {
    EDGES.iter().find(|(name, _)| *name == module).map(|(_, imports)| *imports)
}

/// The module of the crate's first level that a file belongs to; `None` for the map of the crate
/// and for other packages.
pub fn module_of(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib").then_some(module)
}

/// The other modules of the first level that a file imports.
pub fn imported(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return Vec::new() };
    let root_name = if module == "main" { "starling::" } else { "crate::" };
    let mut imported = lexer::paths_after(&Lexed::new(text).code, root_name);
    imported.retain(|name| name != module);
    imported
}

/// The imports of a file that [`EDGES`] does not have.
pub fn forbidden(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return Vec::new() };
    let Some(allowed) = allowed(module) else {
        return vec![format!("{module} is not in the table of edges")];
    };
    let mut broken: Vec<String> = imported(path, text)
        .into_iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| format!("{module} must not import {name}"))
        .collect();

    // `super` from the first level, or twice from the second, names the root.
    let depth = path.matches('/').count() - usize::from(path.ends_with("/mod.rs"));
    let around = "super::".repeat(depth);
    for name in lexer::paths_after(&Lexed::new(text).code, &around) {
        if self::allowed(&name).is_some() && name != module {
            broken.push(format!("{module} imports {name} through super: write crate::{name}"));
        }
    }
    broken
}
