//! A fleet of processes with its own Postgres, Redis and proxies. Each part can fail separately.

use std::fs::File;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::{OwnPostgres, OwnRedis, Proxy};

/// How long a replica may take to start or to stop.
const LIFE_MAX: Duration = Duration::from_secs(30);

/// How replicas are started.
#[derive(Clone, Debug, Default)]
pub struct StageOptions {
    /// `STARLING_FAILPOINTS`.
    pub failpoints: &'static str,
    /// Clients ping every three seconds, so that they soon find a dead connection.
    pub quick_heartbeat: bool,
}

/// The fleet and the services that it depends on.
pub struct Stage {
    pub postgres: OwnPostgres,
    pub redis: OwnRedis,
    pub replicas: Vec<Replica>,
    dir: TempDir,
}

/// A process, and the proxies to its services.
pub struct Replica {
    pub port: u16,
    pub to_postgres: Proxy,
    pub to_redis: Proxy,
    child: Option<Child>,
    environment: Vec<(&'static str, String)>,
    log: std::path::PathBuf,
}

impl Stage {
    /// Starts the services and this number of replicas.
    pub async fn set(replicas: usize, options: &StageOptions) -> Self {
        let (postgres, redis, dir) =
            (OwnPostgres::start().await, OwnRedis::start().await, tempfile::tempdir().unwrap());
        let mut stage = Self { postgres, redis, replicas: Vec::new(), dir };
        assert!(stage.command(&["migrate"]).status().await.unwrap().success());
        for number in 0..replicas {
            let log = stage.dir.path().join(format!("replica-{number}.log"));
            stage.replicas.push(Replica::new(&stage.postgres, &stage.redis, options, log).await);
        }

        for replica in &mut stage.replicas {
            replica.start();
        }
        for replica in &stage.replicas {
            replica.until_ready().await;
        }
        stage
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command.args(arguments).env("DATABASE_URL", self.postgres.url()).kill_on_drop(true);
        command
    }

    /// Creates accounts. Returns one JSON object on each line.
    pub async fn make_users(&self, count: usize) -> String {
        let count = count.to_string();
        let made = self
            .command(&["user", "create", "--login", "u", "--count", &count, "--with-session"])
            .output()
            .await
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap()
    }

    /// Creates an account with a session.
    pub async fn make_user(&self, login: &str) -> serde_json::Value {
        let made = self
            .command(&["user", "create", "--login", login, "--with-session"])
            .output()
            .await
            .unwrap();
        serde_json::from_slice(&made.stdout).unwrap()
    }

    /// `http://host:port` of each replica.
    pub fn bases(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::base).collect()
    }

    /// Starts the replicas that have crashed. Returns their number.
    pub fn revive(&mut self) -> u64 {
        let dead =
            self.replicas.iter_mut().filter_map(|replica| replica.has_died().then_some(replica));
        dead.map(Replica::start).count() as u64
    }

    /// The logs of all replicas.
    pub fn logs(&self) -> String {
        let logs = self
            .replicas
            .iter()
            .map(|replica| std::fs::read_to_string(&replica.log).unwrap_or_default());
        logs.collect::<Vec<_>>().join("\n")
    }
}

impl Replica {
    async fn new(
        postgres: &OwnPostgres,
        redis: &OwnRedis,
        options: &StageOptions,
        log: std::path::PathBuf,
    ) -> Self {
        let to_postgres = Proxy::to(&Proxy::target_of(&postgres.url())).await;
        let to_redis = Proxy::to(&Proxy::target_of(&redis.url())).await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let environment = vec![
            ("DATABASE_URL", to_postgres.in_url(&postgres.url())),
            ("REDIS_URL", to_redis.in_url(&redis.url())),
            ("STARLING_LISTEN", format!("127.0.0.1:{port}")),
            ("STARLING_INTERNAL_LISTEN", "127.0.0.1:0".to_owned()),
            ("STARLING_RATE_LIMITS", "off".to_owned()),
            ("STARLING_DATABASE_CONNECTIONS_MAX", "12".to_owned()),
            (
                "STARLING_HEARTBEAT_INTERVAL_MS",
                if options.quick_heartbeat { "3000" } else { "30000" }.to_owned(),
            ),
            ("STARLING_UNREADY_MS", "200".to_owned()),
            ("STARLING_DRAIN_MS", "1000".to_owned()),
            ("STARLING_FAILPOINTS", options.failpoints.to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        Self { port, to_postgres, to_redis, child: None, environment, log }
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets an environment variable for later starts.
    pub fn set(&mut self, key: &'static str, value: &str) {
        self.environment.retain(|(present, _)| *present != key);
        self.environment.push((key, value.to_owned()));
    }

    pub fn start(&mut self) {
        let log =
            || Stdio::from(File::options().create(true).append(true).open(&self.log).unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_starling"))
            .arg("serve")
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdout(log())
            .stderr(log())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits until the replica is ready.
    pub async fn until_ready(&self) {
        let start = Instant::now();
        while !self.is_ready().await {
            assert!(
                start.elapsed() < LIFE_MAX,
                "a replica does not get ready: {}",
                self.last_log_lines()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the replica is ready. Starts it again if it crashes at a failpoint, as an
    /// orchestrator does.
    pub async fn until_ready_again(&mut self) {
        let start = Instant::now();
        while !self.is_ready().await {
            assert!(
                start.elapsed() < LIFE_MAX,
                "a replica does not get ready: {}",
                self.last_log_lines()
            );
            if self.has_died() {
                self.start();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(3)).build().unwrap();
        http.get(format!("{}/readyz", self.base()))
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    fn last_log_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub fn signal(&self, signal: &str) {
        if let Some(pid) = self.pid() {
            let _ = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Kills the process, as the kernel does when memory runs out.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
    }

    /// Stops the process as an orchestrator does, and waits for its end. Returns whether it ended
    /// with code 0.
    pub async fn terminate(&mut self) -> bool {
        self.signal("-TERM");
        let Some(mut child) = self.child.take() else { return true };
        let ended = tokio::time::timeout(LIFE_MAX, child.wait()).await;
        ended.is_ok_and(|status| status.is_ok_and(|status| status.success()))
    }

    fn has_died(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }
}
