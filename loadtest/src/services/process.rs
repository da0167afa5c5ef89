//! Child processes: how they start and end, and their memory.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A command whose process ends with this one, even if this one is killed. Ctrl-C in the terminal
/// reaches only this program, which then ends the others in order.
pub fn ending_with_us(program: &Path) -> Command {
    ending_with_us_by("KILL", &[], program)
}

/// Like [`ending_with_us`], with another signal, and as the user that `identity` gives `setpriv`.
pub(super) fn ending_with_us_by(signal: &str, identity: &[&str], program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", signal])
        .args(identity)
        .arg(program)
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Sends a signal to a child. A child that was waited for gets none, because another process may
/// have its id. Returns whether the signal was sent.
pub fn signal(child: &Child, signal: Signal) -> bool {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Sends a signal to a child and waits until it has ended. Kills it after 6 s. Blocks, because
/// `drop` calls it.
pub fn end(child: &mut Child, by: Signal) {
    if !signal(child, by) {
        return;
    }

    // The wait ensures that the child no longer uses its folder, which is removed next. It is
    // bounded because it also runs while this program ends. Postgres takes up to 5 s to end its
    // own processes.
    for _ in 0..600 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        pause();
    }

    let _ = child.start_kill();
}

#[expect(clippy::disallowed_methods, reason = "runs in `drop`, where nothing can be awaited")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

/// Returns a port of the loopback interface that is free now.
///
/// # Errors
/// If the kernel has no free port.
pub fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// The last lines of a log: five at most.
pub fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Resident bytes of one process, without its children; `None` if the process does not exist.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Peak of the resident bytes of a process; `None` if the process does not exist.
pub fn peak_resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    kib_field(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, key)
        .map(|kib| kib * 1024)
}

/// Reads a field in KiB, such as `VmRSS:`, from the text of a file in `/proc`.
pub fn kib_field(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_only_of_a_process_that_exists() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident_bytes(u32::MAX), None);
        assert_eq!(kib_field("Name:\tx\nVmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
    }
}
