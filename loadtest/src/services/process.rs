//! Processes that were started here, and end by their ids.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A program that ends with this one, even if this one is killed. Ctrl-C in the terminal reaches
/// this program alone, which then ends the others in order.
pub fn ending_with_us(program: &Path) -> Command {
    ending_with_us_by("KILL", &[], program)
}

/// The same, by a signal, and as another user where `identity` says so to `setpriv`.
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

/// Sends a signal to a child that was not waited for yet, so that the id is still its own. Whether
/// there is one.
pub fn signal(child: &Child, signal: Signal) -> bool {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Sends a signal to a child, and waits until it has ended: 6 s at most, then it is killed. Blocks,
/// for `drop`.
pub fn end(child: &mut Child, by: Signal) {
    if !signal(child, by) {
        return;
    }
    // Its folder is removed next. A bound, since this also runs while the program itself is ending;
    // Postgres takes up to 5 s to end its own.
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

/// A port of the loopback interface that is free now.
///
/// # Errors
/// If the kernel has none.
pub fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// The last lines of a log, five at most.
pub fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Resident bytes of a process alone; none of one that is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most resident bytes that a process had so far; none of one that is gone.
pub fn peak_resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    kib_field(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, key)
        .map(|kib| kib * 1024)
}

/// A field that a file of `/proc` gives in KiB, such as `VmRSS:`.
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
    fn this_process_has_memory_and_one_that_is_gone_has_none() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident_bytes(u32::MAX), None);
        assert_eq!(kib_field("Name:\tx\nVmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
    }
}
