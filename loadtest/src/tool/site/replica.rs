//! A child process that prints its address: a server, or a subcommand of this program.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use starling_loadtest::services::process::{end, end_of, signal};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use crate::tool::proc;

/// Time limit for the process to print its address.
const START: Duration = Duration::from_secs(30);
/// Time limit for a graceful stop.
const STOP: Duration = Duration::from_mins(1);

/// A running process. Dropping kills it.
#[derive(Debug)]
pub struct Replica {
    child: Child,
    /// `http://host:port`.
    pub base: String,
    /// Kept open, because the process may print more.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    /// Starts the process and waits until it prints its address.
    ///
    /// # Errors
    /// If it does not; with the end of its log.
    pub async fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| error.to_string())?;
        let spawned = command.stdout(Stdio::piped()).stderr(file).spawn();
        let mut child = spawned.map_err(|error| format!("the server: {error}"))?;

        let stdout = child.stdout.take().ok_or("the server has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let listening = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(base) = line.strip_prefix("listening on ") {
                    return Some(base.to_owned());
                }
            }
            None
        };
        if let Ok(Some(base)) = timeout(START, listening).await {
            return Ok(Self { child, base, _stdout: lines });
        }
        end(&mut child, Signal::KILL);
        Err(format!("the server did not start:\n{}", end_of(log)))
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Sends SIGTERM and waits for the end of the process. Returns the CPU seconds that it used.
    ///
    /// # Errors
    /// If it does not stop within a minute, or exits with an error.
    pub async fn stop(mut self) -> Result<f64, String> {
        let (pid, began) = (self.pid(), Instant::now());
        signal(&self.child, Signal::TERM);
        // The CPU use is read until the end, because `/proc` does not keep it afterwards.
        let mut cpu_s: f64 = 0.0;
        while began.elapsed() < STOP {
            cpu_s = cpu_s.max(proc::of_tree(pid).cpu_s);
            match self.child.try_wait() {
                Ok(None) => sleep(Duration::from_millis(50)).await,
                Ok(Some(status)) if status.success() => return Ok(cpu_s),
                Ok(Some(status)) => return Err(format!("a stopping replica exited with {status}")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("a replica did not stop in {} s", STOP.as_secs()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // No graceful stop: the data is removed next.
        end(&mut self.child, Signal::KILL);
    }
}
