//! A temporary local deployment: Postgres, Redis, replicas and a load balancer on free ports.
//! Dropping it stops the processes and removes the data.

pub mod replica;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use starling_loadtest::actor::Account;
use starling_loadtest::services::process::ending_with_us;
use starling_loadtest::services::{Postgres, Redis, versions as versions_of_services};
use starling_loadtest::workload::accounts_of_json_lines;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::sleep;

use self::replica::Replica;
use super::proc;
use super::processes::Processes;

/// Most accounts to create. The server creates thousands per minute.
const ACCOUNTS_MAX: usize = 100_000;
/// Settings of a small production database; `fsync` stays on.
const POSTGRES: &[&str] = &["max_connections=300", "shared_buffers=256MB", "max_wal_size=2GB"];
/// `STARLING_UNREADY_MS` of the replicas. The balancer checks readiness four times in this time.
const UNREADY_MS: u64 = 1000;
/// `STARLING_DRAIN_MS` of the replicas.
const DRAIN_MS: u64 = 3000;
/// Time limit for a replica to become ready.
const READY: Duration = Duration::from_secs(30);

/// The kind of deployment to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One process on SQLite.
    Embedded,
    /// This many replicas on Postgres and Redis; with `direct`, without a load balancer.
    Replicas { count: u16, direct: bool },
}

impl Shape {
    /// Number of replicas for workloads that kill replicas; 0 in embedded mode, where no other
    /// replica takes over.
    pub fn replicas(self) -> u16 {
        match self {
            Self::Embedded => 0,
            Self::Replicas { count, .. } => count,
        }
    }

    /// Name in tables.
    pub fn words(self) -> String {
        match self {
            Self::Embedded => "embedded".to_owned(),
            Self::Replicas { count: 1, .. } => "1 replica".to_owned(),
            Self::Replicas { count, direct: true } => {
                format!("{count} replicas, without a balancer")
            }
            Self::Replicas { count, direct: false } => format!("{count} replicas"),
        }
    }
}

/// A running deployment. Dropping stops the fields' processes in this order.
#[derive(Debug)]
pub struct Site {
    balancer: Option<Replica>,
    /// `None` while a replica is stopped.
    replicas: Mutex<Vec<Option<Replica>>>,
    /// Addresses of the replicas. A restart keeps the address.
    addresses: Vec<String>,
    redis: Option<Redis>,
    postgres: Option<Postgres>,
    processes: Processes,
    program: PathBuf,
    limits_rates: bool,
    dir: TempDir,
}

impl Site {
    /// Starts all processes and waits until they are ready.
    ///
    /// # Errors
    /// If a process does not start; with the end of its log. The other processes are stopped.
    pub async fn start(shape: Shape, program: &Path, limits_rates: bool) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("starling-loadtest-")
            .tempdir()
            .map_err(|it| it.to_string())?;
        let mut site = Self {
            balancer: None,
            replicas: Mutex::default(),
            addresses: Vec::new(),
            redis: None,
            postgres: None,
            processes: Processes::default(),
            program: program.to_owned(),
            limits_rates,
            dir,
        };

        let (count, balanced) = match shape {
            Shape::Embedded => (1, false),
            Shape::Replicas { count, direct } => {
                site.start_services().await?;
                (count, count > 1 && !direct)
            }
        };

        for number in 0..usize::from(count) {
            let replica = site.start_replica(number, "127.0.0.1:0").await?;
            site.addresses.push(replica.base.clone());
            site.replicas.lock().push(Some(replica));
        }
        if balanced {
            site.start_balancer().await?;
        }
        Ok(site)
    }

    async fn start_services(&mut self) -> Result<(), String> {
        let postgres = Postgres::start(POSTGRES).await?;
        self.processes.add("postgres", postgres.pid());
        self.postgres = Some(postgres);
        let redis = Redis::start(&[]).await?;
        self.processes.add("redis", redis.pid());
        self.redis = Some(redis);

        let migrated = self.command(&["migrate"]).output().await.map_err(|it| it.to_string())?;
        if migrated.status.success() {
            return Ok(());
        }
        Err(format!("starling migrate: {}", String::from_utf8_lossy(&migrated.stderr).trim()))
    }

    async fn start_replica(&self, number: usize, listen: &str) -> Result<Replica, String> {
        let mut command = self.command(&["serve"]);
        command.env("STARLING_LISTEN", listen);
        let replica =
            Replica::start(command, &self.dir.path().join(format!("replica-{number}.log"))).await?;
        self.processes.add("server", replica.pid());
        until_ready(&replica.base).await?;
        Ok(replica)
    }

    async fn start_balancer(&mut self) -> Result<(), String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = ending_with_us(&own);
        command.args(["balancer", "--to", &self.addresses.join(",")]).stdin(Stdio::null());
        let balancer = Replica::start(command, &self.dir.path().join("balancer.log")).await?;
        self.processes.add("balancer", balancer.pid());
        self.balancer = Some(balancer);
        Ok(())
    }

    /// A command of the server binary with the settings of this deployment. It inherits the other
    /// environment variables of this process, so that an operator can measure other settings.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = ending_with_us(&self.program);
        command
            .args(args)
            .envs(std::env::vars_os())
            .env("STARLING_DATA_DIR", self.dir.path().join("data"))
            .env("STARLING_INTERNAL_LISTEN", "127.0.0.1:0")
            .env("STARLING_RATE_LIMITS", if self.limits_rates { "on" } else { "off" })
            .env("STARLING_LOG", "warn")
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .stdin(Stdio::null());

        if let (Some(postgres), Some(redis)) = (&self.postgres, &self.redis) {
            command.env("DATABASE_URL", postgres.url()).env("REDIS_URL", redis.url());
            command.env("STARLING_UNREADY_MS", UNREADY_MS.to_string());
            command.env("STARLING_DRAIN_MS", DRAIN_MS.to_string());
        }
        command
    }

    /// Creates accounts with sessions.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn make_accounts(&self, count: usize) -> Result<Vec<Account>, String> {
        let count = count.min(ACCOUNTS_MAX).to_string();
        let args = ["user", "create", "--login", "u", "--count", &count, "--with-session"];
        let made = self.command(&args).output().await.map_err(|error| error.to_string())?;
        if !made.status.success() {
            return Err(format!(
                "starling user create: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            ));
        }

        accounts_of_json_lines(&String::from_utf8_lossy(&made.stdout))
    }

    /// Restarts the replicas one by one, as an orchestrator does: sends SIGTERM, waits for the end,
    /// starts the replica on the same port, waits until it is ready. Returns the duration.
    ///
    /// # Errors
    /// If a replica exits with an error, or does not become ready.
    pub async fn restart_each(&self) -> Result<Duration, String> {
        let began = Instant::now();
        for number in 0..self.addresses.len() {
            let taken = self.replicas.lock()[number].take();
            if let Some(replica) = taken {
                let pid = replica.pid();
                let cpu_s = replica.stop().await?;
                self.processes.remove(pid, cpu_s);
            }
            self.start_again(number).await?;
        }
        Ok(began.elapsed())
    }

    /// Starts a stopped replica on its port, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn start_again(&self, number: usize) -> Result<(), String> {
        let replica = self
            .start_replica(number, self.addresses[number].trim_start_matches("http://"))
            .await?;
        self.replicas.lock()[number] = Some(replica);
        Ok(())
    }

    /// Kills the last replica with SIGKILL. Returns its number.
    pub fn kill_last(&self) -> usize {
        let number = self.addresses.len() - 1;
        if let Some(replica) = self.replicas.lock()[number].take() {
            self.processes.remove(replica.pid(), proc::of_tree(replica.pid()).cpu_s);
        }
        number
    }

    /// Closes the Redis subscriptions of all replicas. Returns how many connections were closed.
    ///
    /// # Errors
    /// If there is no Redis, or it does not answer.
    pub async fn cut_subscriptions(&self) -> Result<u64, String> {
        self.redis.as_ref().ok_or("there is no Redis")?.cut_subscriptions().await
    }

    /// Describes the shutdown settings of the replicas; `None` in embedded mode, which uses the
    /// defaults.
    pub fn stops(&self) -> Option<String> {
        self.postgres.as_ref().map(|_| {
            format!(
                "a stopping replica was unready for {UNREADY_MS} ms, then closed its connections \
                 over {DRAIN_MS} ms"
            )
        })
    }

    /// The addresses for clients.
    pub fn bases(&self) -> Vec<String> {
        self.balancer
            .as_ref()
            .map_or_else(|| self.addresses.clone(), |balancer| vec![balancer.base.clone()])
    }

    /// The addresses of the replicas.
    pub fn replicas(&self) -> Vec<String> {
        self.addresses.clone()
    }

    /// The processes by role.
    pub fn processes(&self) -> Processes {
        self.processes.clone()
    }

    /// URL of the Postgres, for floors on the same server.
    pub fn database_url(&self) -> Option<String> {
        self.postgres.as_ref().map(Postgres::url)
    }

    /// Port of the Redis, for floors on the same server.
    pub fn redis_port(&self) -> Option<u16> {
        self.redis.as_ref().map(Redis::port)
    }
}

async fn until_ready(base: &str) -> Result<(), String> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(3)).no_proxy().build();
    let (http, began) = (http.map_err(|error| error.to_string())?, Instant::now());
    while began.elapsed() < READY {
        if http
            .get(format!("{base}/readyz"))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(format!("the replica at {base} did not get ready in {} s", READY.as_secs()))
}

/// Versions of the server binary, Postgres and Redis.
pub async fn versions(program: &Path) -> Vec<String> {
    let output = Command::new(program).arg("--version").output().await;
    let own = output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    own.into_iter().chain(versions_of_services().await).collect()
}
