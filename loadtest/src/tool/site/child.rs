//! Processes that this program started, and ends by their ids.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A program that ends with this one, even if this one is killed. Ctrl-C in the terminal reaches this program alone,
/// which then ends the others in order.
pub fn ending_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).process_group(0).kill_on_drop(true);
    command
}

/// The same, as the user `postgres` if this is root: Postgres refuses to be root.
pub fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg(program).process_group(0).kill_on_drop(true);
    command
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sends a signal to a child that was not waited for yet, so that the id is still its own, and waits a little until it
/// has ended.
pub fn end(child: &mut Child, signal: Signal) {
    let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else { return };
    let _ = kill_process(pid, signal);
    // Its folder is removed next. A bound, since this also runs while the program itself is ending.
    for _ in 0..200 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        pause();
    }
    let _ = child.start_kill();
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs in `drop`, where nothing can be awaited, at the end of the program"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

/// A port that is free now.
///
/// # Errors
/// If the kernel has none.
pub fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// The last lines of a log.
pub fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
