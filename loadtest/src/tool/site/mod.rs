//! A deployment of one's own: Postgres, Redis and replicas on free ports, with temporary data. Dropped, it is gone.

pub mod child;
mod postgres;
mod redis;
pub mod replica;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use starling_loadtest::actor::Account;
use starling_loadtest::workload::accounts_of_json_lines;
use tempfile::TempDir;
use tokio::process::Command;

use self::postgres::Postgres;
use self::redis::Redis;
use self::replica::Replica;
use super::proc::Process;

/// Threads of work that make accounts finish thousands a minute; more than this many takes too long to wait for.
const ACCOUNTS_MAX: usize = 100_000;

/// What to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One process on SQLite.
    Embedded,
    /// So many replicas on Postgres and Redis.
    Replicas(u16),
}

impl Shape {
    /// In words, for tables.
    pub fn words(self) -> String {
        match self {
            Self::Embedded => "embedded".to_owned(),
            Self::Replicas(1) => "1 replica".to_owned(),
            Self::Replicas(count) => format!("{count} replicas"),
        }
    }
}

/// A running deployment. The fields are dropped, and so ended, in this order.
#[derive(Debug)]
pub struct Site {
    replicas: Vec<Replica>,
    redis: Option<Redis>,
    postgres: Option<Postgres>,
    program: PathBuf,
    dir: TempDir,
}

impl Site {
    /// Starts everything and waits until it answers.
    ///
    /// # Errors
    /// In a sentence that says what did not start, with the end of its log. What had started is ended.
    pub async fn start(shape: Shape, program: &Path) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("starling-loadtest-").tempdir().map_err(|it| it.to_string())?;
        let program = program.to_owned();
        let mut site = Self { replicas: Vec::new(), redis: None, postgres: None, program, dir };
        let count = match shape {
            Shape::Embedded => 1,
            Shape::Replicas(count) => {
                site.postgres = Some(Postgres::start().await?);
                site.redis = Some(Redis::start().await?);
                let migrated = site.command(&["migrate"]).output().await.map_err(|it| it.to_string())?;
                if !migrated.status.success() {
                    return Err(format!("starling migrate: {}", String::from_utf8_lossy(&migrated.stderr).trim()));
                }
                count
            }
        };
        for number in 0..count {
            let log = site.dir.path().join(format!("replica-{number}.log"));
            let replica = Replica::start(site.command(&["serve"]), &log).await?;
            site.replicas.push(replica);
        }
        Ok(site)
    }

    /// The program with the site's settings.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = child::ending_with_us(&self.program);
        command
            .args(args)
            .env("STARLING_DATA_DIR", self.dir.path().join("data"))
            .env("STARLING_LISTEN", "127.0.0.1:0")
            .env("STARLING_INTERNAL_LISTEN", "127.0.0.1:0")
            .env("STARLING_RATE_LIMITS", "off")
            .env("STARLING_LOG", "warn")
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .stdin(Stdio::null());
        if let (Some(postgres), Some(redis)) = (&self.postgres, &self.redis) {
            command.env("DATABASE_URL", postgres.url()).env("REDIS_URL", redis.url());
        }
        command
    }

    /// Makes accounts with sessions.
    ///
    /// # Errors
    /// If the program can't.
    pub async fn make_accounts(&self, count: usize) -> Result<Vec<Account>, String> {
        let count = count.min(ACCOUNTS_MAX).to_string();
        let args = ["user", "create", "--login", "u", "--count", &count, "--with-session"];
        let made = self.command(&args).output().await.map_err(|error| error.to_string())?;
        if !made.status.success() {
            return Err(format!("starling user create: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        accounts_of_json_lines(&String::from_utf8_lossy(&made.stdout))
    }

    /// The addresses of the replicas.
    pub fn bases(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.base.clone()).collect()
    }

    /// The processes, by what they are.
    pub fn processes(&self) -> Vec<Process> {
        let servers = self.replicas.iter().map(|replica| Process { role: "server", pid: replica.pid() });
        let postgres = self.postgres.iter().map(|it| Process { role: "postgres", pid: it.pid() });
        let redis = self.redis.iter().map(|it| Process { role: "redis", pid: it.pid() });
        servers.chain(postgres).chain(redis).collect()
    }

    /// The Postgres, for floors on the same one.
    pub fn database_url(&self) -> Option<String> {
        self.postgres.as_ref().map(Postgres::url)
    }

    /// The port of the Redis, for floors on the same one.
    pub fn redis_port(&self) -> Option<u16> {
        self.redis.as_ref().map(Redis::port)
    }
}

/// What Postgres and Redis say of themselves.
pub async fn versions(program: &Path) -> Vec<String> {
    let postgres = postgres::programs().join("postgres");
    let mut versions = Vec::new();
    for (program, flag) in [(program, "--version"), (postgres.as_path(), "--version")] {
        if let Ok(said) = Command::new(program).arg(flag).output().await {
            versions.push(String::from_utf8_lossy(&said.stdout).trim().to_owned());
        }
    }
    versions.extend(redis::version().await);
    versions
}
