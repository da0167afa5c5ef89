//! Shared by the tests of the program.

use std::os::unix::fs::PermissionsExt;

/// Path of the load test program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_starling-loadtest");

/// Creates a folder for a run. Postgres runs as another user and has its data in it.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}
