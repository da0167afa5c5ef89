//! A temporary Redis.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::PORTS_MAX;
use super::process::{end, end_of, ending_with_us, free_port};

/// A Redis server on a free port that stores nothing on disk.
#[derive(Debug)]
pub struct Redis {
    child: Option<Child>,
    port: u16,
    arguments: Vec<String>,
    dir: TempDir,
}

/// Creates a link `redis-server` in a folder and returns its path. On Debian the tools are the same
/// binary as the server, which chooses its role by the name under which it is called.
fn named(dir: &Path) -> Result<PathBuf, String> {
    let paths =
        ["/usr/bin/redis-server", "/usr/bin/redis-check-rdb", "/usr/local/bin/redis-server"];
    let program = paths.iter().map(Path::new).find(|path| path.exists());
    let program = program.ok_or("no Redis server found: install Redis 7 or later")?;
    let link = dir.join("redis-server");
    std::os::unix::fs::symlink(program, &link).map_err(|error| error.to_string())?;
    Ok(link)
}

/// The version of the installed server.
pub(super) async fn version() -> Option<String> {
    let dir = tempfile::tempdir().ok()?;
    let output = Command::new(named(dir.path()).ok()?).arg("--version").output().await.ok()?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = output.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    Some(format!("Redis {version}"))
}

impl Redis {
    /// Starts a server with further arguments, and waits until it answers.
    ///
    /// # Errors
    /// If the server does not start. The error contains the end of its log.
    pub async fn start(arguments: &[&str]) -> Result<Self, String> {
        let arguments = |port: u16, dir: &Path| {
            let own = [("--port", port.to_string()), ("--dir", dir.display().to_string())];
            let own = own.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
            let fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            Ok(own.chain(fixed.iter().chain(arguments).map(|it| (*it).to_owned())).collect())
        };
        Self::start_with(arguments).await
    }

    /// Starts a Sentinel with its address and these lines of configuration, and waits until it
    /// answers.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_sentinel(lines: &str) -> Result<Self, String> {
        Self::start_with(|port, dir| {
            // Sentinel writes to its configuration file.
            let path = dir.join("sentinel.conf");
            std::fs::write(&path, format!("port {port}\nbind 127.0.0.1\n{lines}"))
                .map_err(|it| it.to_string())?;
            Ok(vec![path.display().to_string(), "--sentinel".to_owned()])
        })
        .await
    }

    async fn start_with(
        arguments: impl Fn(u16, &Path) -> Result<Vec<String>, String>,
    ) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("starling-redis-")
            .tempdir()
            .map_err(|it| it.to_string())?;
        named(dir.path())?;

        let mut redis = Self { child: None, port: 0, arguments: Vec::new(), dir };
        for _ in 0..PORTS_MAX {
            redis.port = free_port()?;
            redis.arguments = arguments(redis.port, redis.dir.path())?;
            if redis.try_start().await? {
                return Ok(redis);
            }
        }

        Err(redis.start_error())
    }

    /// Starts a killed server again on the same port. Its data is lost.
    ///
    /// # Errors
    /// If the server does not start. The error contains the end of its log.
    pub async fn restart(&mut self) -> Result<(), String> {
        if self.try_start().await? { Ok(()) } else { Err(self.start_error()) }
    }

    /// Starts the server. Returns whether it answered within 5 s and before it ended.
    async fn try_start(&mut self) -> Result<bool, String> {
        let log = std::fs::File::create(self.log()).map_err(|error| error.to_string())?;
        let mut child = ending_with_us(&self.dir.path().join("redis-server"))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .map_err(|error| format!("Redis: {error}"))?;

        for _ in 0..250 {
            // Checked before the port, because another server may have taken the port and answer
            // there.
            if !matches!(child.try_wait(), Ok(None)) {
                return Ok(false);
            }
            if answers(self.port).await {
                self.child = Some(child);
                return Ok(true);
            }
            sleep(Duration::from_millis(20)).await;
        }

        end(&mut child, Signal::TERM);
        Ok(false)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn start_error(&self) -> String {
        format!("Redis did not start:\n{}", end_of(&self.log()))
    }

    /// Kills the server with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child, Signal::KILL);
        }
    }

    /// Cuts every connection with a subscription. Returns their number.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn cut_subscriptions(&self) -> Result<u64, String> {
        let asking = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"CLIENT KILL TYPE pubsub\r\n").await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = asking.await.map_err(|error| format!("Redis: {error}"))?;
        let count = answer.trim_end().strip_prefix(':').and_then(|count| count.parse().ok());
        count.ok_or_else(|| format!("Redis: {answer}"))
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// TCP port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the server; 0 while it is stopped.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap_or(0)
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
        // The server has no data to save.
        self.kill();
    }
}
