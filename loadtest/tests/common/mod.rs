//! What the tests of the program share.

use std::os::unix::fs::PermissionsExt;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_starling-loadtest");

/// A folder for a run. Postgres, which runs as another user, has its data below.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}
