//! A temporary Postgres.

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

/// Maximum number of attempts of a restart: processes of a killed server may still be ending.
const RESTARTS_MAX: usize = 20;

/// A Postgres server on a free port. It keeps its port after a restart.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    port: u16,
    settings: Vec<String>,
    dir: TempDir,
}

/// The folder of the newest server's programs. Debian installs each version in a folder of its own,
/// outside of PATH.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let with_server =
        versions.map(|entry| entry.path()).filter(|version| version.join("bin/initdb").exists());
    newest(with_server).map_or_else(|| PathBuf::from("/usr/bin"), |version| version.join("bin"))
}

/// The folder whose name is the greatest number. By text, 9 would sort after 15.
fn newest(versions: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let number = |version: &PathBuf| version.file_name()?.to_str()?.parse::<u32>().ok();
    versions.max_by_key(number)
}

/// A command that runs as the user `postgres` if this process is root, because Postgres refuses to
/// run as root.
fn as_postgres(program: &Path) -> Command {
    let identity: &[&str] = if is_root() {
        &["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    } else {
        &[]
    };
    ending_with_us_by("QUIT", identity, program)
}

/// Creates a folder that the server may use.
async fn folder() -> Result<TempDir, String> {
    let dir = tempfile::Builder::new()
        .prefix("starling-postgres-")
        .tempdir()
        .map_err(|it| it.to_string())?;

    if is_root() {
        let chown = Command::new("chown").arg("postgres").arg(dir.path()).status().await;
        if !chown.is_ok_and(|status| status.success()) {
            return Err("failed to give the data folder to the user postgres".to_owned());
        }
    }

    Ok(dir)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The version of the installed server.
pub(super) async fn version() -> Option<String> {
    let output = Command::new(programs().join("postgres")).arg("--version").output().await.ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Postgres {
    /// Creates a server and starts it with its address and these settings (`name=value`).
    ///
    /// # Errors
    /// If the server does not start. The error contains the end of its log.
    pub async fn start(settings: &[&str]) -> Result<Self, String> {
        let dir = folder().await?;
        let created = as_postgres(&programs().join("initdb"))
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

        if !created.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&created.stderr).trim()));
        }

        Self::start_in(dir, settings).await
    }

    /// Creates a standby of this server and starts it. It streams through `proxy`, or directly from
    /// this server.
    ///
    /// # Errors
    /// If the server does not start. The error contains the end of its log.
    pub async fn standby(
        &self,
        proxy: Option<SocketAddr>,
        settings: &[&str],
    ) -> Result<Self, String> {
        let dir = folder().await?;
        let port = proxy.map_or(self.port, |proxy| proxy.port()).to_string();

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
            if postgres.try_start().await? {
                return Ok(postgres);
            }
        }
        Err(postgres.start_error())
    }

    /// Starts a stopped server again on the same port.
    ///
    /// # Errors
    /// If the server does not start. The error contains the end of its log.
    pub async fn restart(&mut self) -> Result<(), String> {
        for _ in 0..RESTARTS_MAX {
            if self.try_start().await? {
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(self.start_error())
    }

    /// Starts the server. Returns whether it accepted connections within 15 s and before it ended.
    async fn try_start(&mut self) -> Result<bool, String> {
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

    /// Whether the server with this process id accepts connections. Reads `postmaster.pid`, because
    /// another server on the port would accept a connection, too. A killed server leaves the file
    /// behind, so the file must name this process.
    fn is_ready(&self, pid: Option<u32>) -> bool {
        let status = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid"))
            .unwrap_or_default();
        let named = status.lines().next().and_then(|line| line.trim().parse().ok());
        named.is_some() && named == pid && status.lines().any(|line| line.starts_with("ready"))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn start_error(&self) -> String {
        format!("Postgres did not start:\n{}", end_of(&self.log()))
    }

    /// Ends all processes at once, without a checkpoint, as `pg_ctl stop -m immediate` does.
    pub fn stop_immediately(&mut self) {
        self.end(Signal::QUIT);
    }

    /// Kills the main process with SIGKILL. The other processes then end by themselves.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            end(&mut child, signal);
        }
    }

    /// URL of the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Process id of the main process; 0 while the server is stopped.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap_or(0)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The folder is deleted next, so no data needs to be flushed.
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
