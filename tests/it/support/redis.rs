//! A Redis server for one test, for tests that break it; also a cluster, a replica, a Sentinel.

use std::time::Duration;

use starling_loadtest::services::Redis;

/// A Redis server on its own port; dropping it stops the server.
pub struct OwnRedis(Redis);

impl OwnRedis {
    /// Starts a server, and waits until it answers.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with further settings.
    pub async fn with(arguments: &[&str]) -> Self {
        Self(Redis::start(arguments).await.unwrap())
    }

    /// Starts the nodes of a Redis Cluster, and waits until the cluster is complete.
    pub async fn cluster() -> Vec<Self> {
        let mut nodes = Vec::new();
        for slots in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]] {
            let node =
                Self::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]).await;
            let _: String = node.command(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
            nodes.push(node);
        }

        for node in &nodes[1..] {
            let _: String =
                nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]).await;
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

    /// Starts a replica of `master`.
    pub async fn replica_of(master: &Self) -> Self {
        Self::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]).await
    }

    /// Starts a Sentinel that monitors `master` under the name `main`.
    pub async fn sentinel(master: &Self) -> Self {
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            master.port()
        );
        Self(Redis::start_sentinel(&settings).await.unwrap())
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Starts the server again on the same port, without its data.
    pub async fn restart(&mut self) {
        self.0.restart().await.unwrap();
    }

    /// Sends one command.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        command(&self.url(), words).await.unwrap()
    }
}

/// The most time for Redis to connect and to answer. The library's defaults are too short for a
/// busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Sends one command to the Redis at `url`.
pub async fn command<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(url)?;
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;

    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut connection).await
}
