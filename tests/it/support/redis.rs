//! A Redis of one's own, for tests that break it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A Redis server on a port of its own; it ends with this value.
pub struct OwnRedis {
    child: Option<Child>,
    pub port: u16,
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
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let (number, path) = (port.to_string(), dir.path().display().to_string());
        let own = ["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &path];
        Self::spawn(port, dir, &[&own, arguments].concat()).await
    }

    /// Starts the nodes of a Redis Cluster, and waits until it is one.
    pub async fn cluster() -> Vec<Self> {
        let mut nodes = Vec::new();
        for slots in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]] {
            let node = Self::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]).await;
            let _: String = node.command(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
            nodes.push(node);
        }
        for node in &nodes[1..] {
            let _: String = nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string()]).await;
        }
        for node in &nodes {
            for _ in 0..500 {
                let info: String = node.command(&["CLUSTER", "INFO"]).await;
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        nodes
    }

    /// Starts a server that does what another does.
    pub async fn replica_of(master: &Self) -> Self {
        Self::with(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await
    }

    /// Starts a Sentinel that watches over a master, and names it `main`.
    pub async fn sentinel(master: &Self) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let path = dir.path().join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
            master.port
        );
        std::fs::write(&path, settings).unwrap();
        Self::spawn(port, dir, &[path.to_str().unwrap(), "--sentinel"]).await
    }

    async fn spawn(port: u16, dir: TempDir, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        let mut redis = Self { child: None, port, arguments, dir };
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
        let child = Command::new(self.dir.path().join("redis-server"))
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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
