//! One process of the server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::child::{end, end_of};

/// How long it may take until it serves.
const START: Duration = Duration::from_secs(30);

/// A running replica; ended when dropped.
#[derive(Debug)]
pub struct Replica {
    child: Child,
    /// `http://host:port`.
    pub base: String,
    /// Not to be closed: the server prints there.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    /// Starts it, and waits until it says where it listens.
    ///
    /// # Errors
    /// In a sentence, with the end of its log.
    pub async fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|error| error.to_string())?;
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

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // Not a drain: nobody is left to be told, and its data goes.
        end(&mut self.child, Signal::KILL);
    }
}
