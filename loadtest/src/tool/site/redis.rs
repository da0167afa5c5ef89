//! A Redis of one's own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::child::{end, end_of, ending_with_us, free_port};

/// A Redis server that keeps nothing; ended and removed when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    port: u16,
    _dir: TempDir,
}

/// The server's program. Debian's tools are the server, too: it goes by the name it is called by.
fn program() -> Option<PathBuf> {
    let places = ["/usr/bin/redis-server", "/usr/bin/redis-check-rdb", "/usr/local/bin/redis-server"];
    places.iter().map(PathBuf::from).find(|path| path.exists())
}

fn named(dir: &Path) -> Result<PathBuf, String> {
    let program = program().ok_or("no Redis server here: install Redis 7 or later")?;
    let link = dir.join("redis-server");
    std::os::unix::fs::symlink(program, &link).map_err(|error| error.to_string())?;
    Ok(link)
}

/// What it says of itself.
pub async fn version() -> Option<String> {
    let dir = tempfile::tempdir().ok()?;
    let said = Command::new(named(dir.path()).ok()?).arg("--version").output().await.ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    Some(format!("Redis {version}"))
}

impl Redis {
    /// Starts a server, and waits until it answers.
    ///
    /// # Errors
    /// In a sentence, with the end of the log.
    pub async fn start() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("starling-redis-").tempdir().map_err(|it| it.to_string())?;
        let (program, port, log) = (named(dir.path())?, free_port()?, dir.path().join("log"));
        let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        let mut child = ending_with_us(&program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(file)
            .spawn()
            .map_err(|error| format!("Redis: {error}"))?;
        for _ in 0..250 {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            if answers(port).await {
                return Ok(Self { child, port, _dir: dir });
            }
            sleep(Duration::from_millis(20)).await;
        }
        end(&mut child, Signal::TERM);
        Err(format!("Redis did not start:\n{}", end_of(&log)))
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}

async fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let mut answer = [0; 5];
    stream.write_all(b"PING\r\n").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer.starts_with(b"+PONG")
}

impl Drop for Redis {
    fn drop(&mut self) {
        end(&mut self.child, Signal::TERM);
    }
}
