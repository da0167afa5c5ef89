//! A Redis of one's own, for tests that break it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A Redis server on a port of its own; it ends with this value.
pub struct OwnRedis {
    child: Option<Child>,
    port: u16,
    arguments: Vec<String>,
    dir: TempDir,
}

impl OwnRedis {
    /// Starts a server, and waits until it answers.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with further settings.
    pub async fn with(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        let mut redis = Self { child: None, port, arguments, dir: tempfile::tempdir().unwrap() };
        // Debian's tools are the server, too: it goes by the name it is called by.
        let program = ["/usr/bin/redis-server", "/usr/bin/redis-check-rdb", "/usr/local/bin/redis-server"];
        let program = program.iter().find(|path| std::path::Path::new(path).exists()).expect("Redis is installed");
        std::os::unix::fs::symlink(program, redis.dir.path().join("redis-server")).unwrap();
        redis.restart().await;
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server again on the same port; it remembers nothing.
    pub async fn restart(&mut self) {
        let dir = self.dir.path();
        let port = self.port.to_string();
        let child = Command::new(dir.join("redis-server"))
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        for _ in 0..250 {
            if self.try_command::<String>(&["PING"]).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("Redis did not start");
    }

    /// Sends one command.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).await.unwrap()
    }

    async fn try_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        command(&self.url(), words).await
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends one command to the Redis at `url`.
pub async fn command<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut connection).await
}
