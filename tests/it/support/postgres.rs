//! A Postgres of one's own, for tests that break it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

/// A Postgres server on a port of its own; it ends with this value.
pub struct OwnPostgres {
    child: Option<Child>,
    port: u16,
    dir: TempDir,
}

/// The newest server's programs; Debian keeps them out of PATH.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    newest.unwrap_or_else(|| PathBuf::from("/usr/bin"))
}

/// A program that runs as the user `postgres` if this is root, as Postgres demands, and ends with this process.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg(program);
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

impl OwnPostgres {
    /// Makes a cluster and starts it.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap().success());
        }
        let initdb = as_postgres(&programs().join("initdb"))
            .args(["--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--pgdata"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(initdb.success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut postgres = Self { child: None, port, dir };
        postgres.restart().await;
        postgres
    }

    /// The address of its one database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it again after it was stopped.
    pub async fn restart(&mut self) {
        for _ in 0..20 {
            let child = as_postgres(&programs().join("postgres"))
                .arg("-D")
                .arg(self.dir.path().join("data"))
                .arg("-k")
                .arg(self.dir.path())
                .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "fsync=off", "-c", "max_connections=100"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            self.child = Some(child);
            for _ in 0..100 {
                if PgConnection::connect(&self.url()).await.is_ok() {
                    return;
                }
                if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                    // What a killed server left behind may still be ending.
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.kill();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("Postgres did not start");
    }

    /// `pg_ctl stop -m immediate`: all its processes end at once, without a word to the disk.
    pub fn stop_immediately(&mut self) {
        self.signal("-QUIT");
    }

    /// Kills the first process; the others notice.
    pub fn kill(&mut self) {
        self.signal("-KILL");
    }

    fn signal(&mut self, signal: &str) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").args([signal, &child.id().to_string()]).status();
            child.wait().unwrap();
        }
    }

    /// Runs statements on a connection of its own.
    pub async fn execute(&self, sql: &str) {
        if let Ok(mut connection) = PgConnection::connect(&self.url()).await {
            // A test that breaks the database may break this, too.
            let _ = connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await;
        }
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.stop_immediately();
    }
}
