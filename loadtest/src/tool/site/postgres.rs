//! A Postgres of one's own.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::sleep;

use super::child::{as_postgres, end, end_of, free_port, is_root};

/// Ports that are tried: another program may take one between the look and the start.
const TRIES: usize = 5;

/// A Postgres server that writes to disk for real; ended and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    _dir: TempDir,
}

/// Where the newest server's programs are; Debian keeps them out of PATH.
pub fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    let version = |bin: &PathBuf| {
        let name = bin.parent().and_then(|it| it.file_name()).and_then(|it| it.to_str());
        name.and_then(|name| name.parse::<u32>().ok())
    };
    bins.max_by_key(version).unwrap_or_else(|| PathBuf::from("/usr/bin"))
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// In a sentence, with the end of the log.
    pub async fn start() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("starling-postgres-").tempdir().map_err(|it| it.to_string())?;
        if is_root() {
            let chown = tokio::process::Command::new("chown").arg("postgres").arg(dir.path()).status().await;
            if !chown.is_ok_and(|status| status.success()) {
                return Err("there is no user postgres for the database to run as".to_owned());
            }
        }
        let made = as_postgres(&programs().join("initdb"))
            .args(["--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--pgdata"])
            .arg(dir.path().join("data"))
            .output()
            .await
            .map_err(|error| format!("initdb: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        for _ in 0..TRIES {
            let port = free_port()?;
            let mut child = Self::spawn(&dir, port)?;
            if is_ready(&dir, &mut child).await {
                return Ok(Self { child, port, _dir: dir });
            }
            end(&mut child, Signal::QUIT);
        }
        Err(format!("Postgres did not start:\n{}", end_of(&dir.path().join("log"))))
    }

    fn spawn(dir: &TempDir, port: u16) -> Result<Child, String> {
        let log = std::fs::File::create(dir.path().join("log")).map_err(|error| error.to_string())?;
        let both = log.try_clone().map_err(|error| error.to_string())?;
        as_postgres(&programs().join("postgres"))
            .arg("-D")
            .arg(dir.path().join("data"))
            .arg("-k")
            .arg(dir.path())
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "max_connections=300"])
            .args(["-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB"])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both)
            .spawn()
            .map_err(|error| format!("Postgres: {error}"))
    }

    /// The address of its one database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}

/// Not a connection, which another server on that port would take, too: this file is ours.
async fn is_ready(dir: &TempDir, child: &mut Child) -> bool {
    for _ in 0..300 {
        let told = std::fs::read_to_string(dir.path().join("data/postmaster.pid")).unwrap_or_default();
        if told.lines().any(|line| line.starts_with("ready")) {
            return true;
        }
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // All its processes end at once; the folder goes, so there is nothing to flush.
        end(&mut self.child, Signal::QUIT);
    }
}
