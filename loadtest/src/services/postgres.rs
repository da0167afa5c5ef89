//! A Postgres of one's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::PORTS_MAX;
use super::process::{end, end_of, ending_with_us_by, free_port};

/// Tries to start again on the same port: what a killed server left behind may still be ending.
const RESTARTS_MAX: usize = 20;

/// A Postgres server on a port of its own, which is its own again after a restart.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    port: u16,
    settings: Vec<String>,
    dir: TempDir,
}

/// Where the newest server's programs are; Debian keeps them out of PATH, in a folder a version.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let with_server =
        versions.map(|entry| entry.path()).filter(|version| version.join("bin/initdb").exists());
    newest(with_server).map_or_else(|| PathBuf::from("/usr/bin"), |version| version.join("bin"))
}

/// The folder with the greatest number for a name. As words, 9 would come after 15.
fn newest(versions: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let number = |version: &PathBuf| version.file_name()?.to_str()?.parse::<u32>().ok();
    versions.max_by_key(number)
}

/// A program that runs as the user `postgres` if this is root, as Postgres demands.
fn as_postgres(program: &Path) -> Command {
    let identity: &[&str] = if is_root() {
        &["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    } else {
        &[]
    };
    ending_with_us_by("QUIT", identity, program)
}

/// A folder that the server may use.
async fn folder() -> Result<TempDir, String> {
    let dir = tempfile::Builder::new()
        .prefix("starling-postgres-")
        .tempdir()
        .map_err(|it| it.to_string())?;
    if is_root() {
        let chown = Command::new("chown").arg("postgres").arg(dir.path()).status().await;
        if !chown.is_ok_and(|status| status.success()) {
            return Err("there is no user postgres for the database to run as".to_owned());
        }
    }
    Ok(dir)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What it says of itself.
pub(super) async fn version() -> Option<String> {
    let said = Command::new(programs().join("postgres")).arg("--version").output().await.ok()?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

impl Postgres {
    /// Makes a cluster, and starts it with these settings (`name=value`) beyond its address.
    ///
    /// # Errors
    /// In a sentence, with the end of the log.
    pub async fn start(settings: &[&str]) -> Result<Self, String> {
        let dir = folder().await?;
        let made = as_postgres(&programs().join("initdb"))
            .args([
                "--username",
                "postgres",
                "--auth",
                "trust",
                "--no-sync",
                "--encoding",
                "UTF8",
                "--pgdata",
            ])
            .arg(dir.path().join("data"))
            .output()
            .await
            .map_err(|error| format!("initdb: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        Self::start_in(dir, settings).await
    }

    /// Makes a standby of this server, and starts it: it streams through `way` (a proxy), or
    /// straight from here.
    ///
    /// # Errors
    /// In a sentence, with the end of the log.
    pub async fn standby(
        &self,
        way: Option<SocketAddr>,
        settings: &[&str],
    ) -> Result<Self, String> {
        let dir = folder().await?;
        let port = way.map_or(self.port, |way| way.port()).to_string();
        let copied = as_postgres(&programs().join("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--pgdata"])
            .arg(dir.path().join("data"))
            .output()
            .await
            .map_err(|error| format!("pg_basebackup: {error}"))?;
        if !copied.status.success() {
            return Err(format!(
                "pg_basebackup: {}",
                String::from_utf8_lossy(&copied.stderr).trim()
            ));
        }
        Self::start_in(dir, settings).await
    }

    async fn start_in(dir: TempDir, settings: &[&str]) -> Result<Self, String> {
        let settings = settings.iter().map(|it| (*it).to_owned()).collect();
        let mut postgres = Self { child: None, port: 0, settings, dir };
        for _ in 0..PORTS_MAX {
            postgres.port = free_port()?;
            if postgres.is_up().await? {
                return Ok(postgres);
            }
        }
        Err(postgres.last_words())
    }

    /// Starts it again, on the same port, after it was stopped.
    ///
    /// # Errors
    /// In a sentence, with the end of the log.
    pub async fn restart(&mut self) -> Result<(), String> {
        for _ in 0..RESTARTS_MAX {
            if self.is_up().await? {
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(self.last_words())
    }

    /// Starts it. Whether it takes connections before it ends, and within 15 s.
    async fn is_up(&mut self) -> Result<bool, String> {
        let mut child = self.spawn()?;
        for _ in 0..300 {
            if self.is_ready(child.id()) {
                self.child = Some(child);
                return Ok(true);
            }
            if !matches!(child.try_wait(), Ok(None)) {
                return Ok(false);
            }
            sleep(Duration::from_millis(50)).await;
        }
        end(&mut child, Signal::QUIT);
        Ok(false)
    }

    fn spawn(&self) -> Result<Child, String> {
        let log = std::fs::File::create(self.log()).map_err(|error| error.to_string())?;
        let both = log.try_clone().map_err(|error| error.to_string())?;
        as_postgres(&programs().join("postgres"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both)
            .spawn()
            .map_err(|error| format!("Postgres: {error}"))
    }

    /// Not by a connection, which another server on that port would take, too: this file is ours. A
    /// server that was killed leaves it behind, so it must name this one.
    fn is_ready(&self, pid: Option<u32>) -> bool {
        let told = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid"))
            .unwrap_or_default();
        let named = told.lines().next().and_then(|line| line.trim().parse().ok());
        named.is_some() && named == pid && told.lines().any(|line| line.starts_with("ready"))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn last_words(&self) -> String {
        format!("Postgres did not start:\n{}", end_of(&self.log()))
    }

    /// Ends all its processes at once, without a word to the disk, as `pg_ctl stop -m immediate`
    /// does.
    pub fn stop_immediately(&mut self) {
        self.end(Signal::QUIT);
    }

    /// Kills the first process; the others notice.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            end(&mut child, signal);
        }
    }

    /// The address of its one database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Its first process; 0 while it is stopped.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap_or(0)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The folder goes, so there is nothing to flush.
        self.stop_immediately();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_the_greatest_number() {
        let of = |names: &[&str]| {
            newest(names.iter().map(|name| PathBuf::from("/usr/lib/postgresql").join(name)))
        };
        assert_eq!(of(&["15", "9", "16", "backup"]), Some(PathBuf::from("/usr/lib/postgresql/16")));
        assert_eq!(of(&[]), None);
    }
}
