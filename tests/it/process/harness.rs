//! Runs the binary with an environment of its own, and reads its output and files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{Backend, Database, User};

/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_mins(1);
/// How long a server may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// A directory, a database and an environment for processes.
pub struct Home {
    pub dir: TempDir,
    pub database: Database,
    env: BTreeMap<String, String>,
}

/// A limit of the number of open files of a process.
#[derive(Clone, Copy, Debug)]
pub enum Files {
    /// The soft limit, which the process may raise.
    Soft(u32),
    /// The hard limit, and so the soft one too.
    Hard(u32),
}

/// The result of a command.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// Fails unless the command ended with this code and one sentence on stderr that contains these
    /// words.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {:?}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        if self.err.starts_with("starling: ") {
            assert_eq!(self.err.trim_end().lines().count(), 1, "one sentence: {}", self.err);
        }
    }

    /// The output of a command. Fails unless it ended with code 0.
    #[track_caller]
    pub fn fine(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

impl Home {
    /// Embedded mode.
    pub fn new() -> Self {
        Self::on(Database::Sqlite)
    }

    /// A migrated database of either kind.
    pub async fn of(backend: Backend) -> Self {
        Self::on(Database::create(backend).await)
    }

    /// An existing database.
    pub fn on(database: Database) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut env = BTreeMap::from([
            ("STARLING_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("STARLING_INTERNAL_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("STARLING_DATA_DIR".to_owned(), dir.path().join("data").display().to_string()),
            ("STARLING_RATE_LIMITS".to_owned(), "off".to_owned()),
            ("STARLING_DRAIN_MS".to_owned(), "200".to_owned()),
            ("STARLING_LOG".to_owned(), "error".to_owned()),
        ]);

        env.extend(database.url().map(|url| ("DATABASE_URL".to_owned(), url)));
        Self { dir, database, env }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Unsets an environment variable.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.env.remove(key);
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command
            .args(arguments)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.path())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command(arguments)).await
    }

    async fn finish(&self, mut command: Command) -> Finished {
        let output = tokio::time::timeout(COMMAND_MAX, command.stdin(Stdio::null()).output()).await;
        let output = output.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Finished { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs a command with a limit of open files.
    pub async fn run_with_files(&self, limit: Files, arguments: &[&str]) -> Finished {
        self.finish(self.with_files(limit, arguments)).await
    }

    /// Starts a server with a limit of open files.
    pub async fn serve_with_files(&self, limit: Files) -> Process {
        self.start(self.with_files(limit, &[])).await
    }

    fn with_files(&self, limit: Files, arguments: &[&str]) -> Command {
        let (kind, limit) = match limit {
            Files::Soft(limit) => ("-S", limit),
            Files::Hard(limit) => ("", limit),
        };
        let script = format!("ulimit {kind} -n {limit} && exec \"$0\" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_starling")]).args(arguments);
        command.env_clear().envs(&self.env).current_dir(self.path()).kill_on_drop(true);
        command
    }

    /// Starts a server and waits until it prints its address.
    pub async fn serve(&self) -> Process {
        self.serve_with(&[]).await
    }

    /// Like [`Home::serve`], with arguments.
    pub async fn serve_with(&self, arguments: &[&str]) -> Process {
        self.start(self.command(arguments)).await
    }

    async fn start(&self, mut command: Command) -> Process {
        let log = self.path().join("stderr");
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();

        let listening = async {
            while let Some(line) = out.next_line().await.unwrap() {
                said.push(line);
                if let Some(base) = said.last().and_then(|line| line.strip_prefix("listening on "))
                {
                    return Some(base.to_owned());
                }
            }
            None
        };

        let base =
            tokio::time::timeout(START_MAX, listening).await.expect("the server starts in time");
        let base = base.unwrap_or_else(|| {
            panic!("the server did not start: {}", std::fs::read_to_string(&log).unwrap())
        });
        Process { child, out, said, base }
    }

    /// The stderr of all servers of this home.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("stderr")).unwrap()
    }

    /// Creates accounts with sessions by the command line: `LOGIN1 …`.
    pub async fn users(&self, base: &str, login: &str, count: usize) -> Vec<User> {
        let count = count.to_string();
        let made = self
            .run(&["user", "create", "--login", login, "--count", &count, "--with-session"])
            .await
            .fine();
        let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();

        let user = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let words = ["user_id", "login", "password", "token"].map(|key| word(&line, key));
            let [id, login, password, token] = words;
            User::new(base.to_owned(), id, login, password, token)
        };
        made.lines().map(user).collect()
    }
}

/// A running server.
pub struct Process {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    /// The lines that the server printed up to `listening on …`.
    pub said: Vec<String>,
    /// `http://host:port`
    pub base: String,
}

impl Process {
    pub fn address(&self) -> SocketAddr {
        self.base.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// A client without a token.
    pub fn stranger(&self) -> User {
        User::new(self.base.clone(), String::new(), String::new(), String::new(), String::new())
    }

    /// The same account as a client of this process.
    pub fn at(&self, user: &User) -> User {
        let User { id, login, password, token, .. } = user.clone();
        User::new(self.base.clone(), id, login, password, token)
    }

    /// The invite in the first-account link, if the server printed one.
    pub fn first_invite(&self) -> Option<String> {
        self.said.iter().find_map(|line| line.split_once("/join#")).map(|(_, code)| code.to_owned())
    }

    /// Registers an account.
    pub async fn register(&self, invite: &str, login: &str) -> crate::support::Answer {
        let body = json!({
            "invite": invite, "login": login, "password": "correct horse battery", "name": login
        });
        self.stranger().post("/users", body).await
    }

    /// Sends the signal with this name.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("the server runs").to_string();
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process. Returns the exit code, the lines printed since the start,
    /// and how long it took.
    pub async fn end(mut self) -> (Option<i32>, Vec<String>, Duration) {
        let start = Instant::now();
        let mut rest = Vec::new();
        let ending = async {
            while let Some(line) = self.out.next_line().await.unwrap() {
                rest.push(line);
            }
            self.child.wait().await.unwrap().code()
        };

        let code =
            tokio::time::timeout(COMMAND_MAX, ending).await.expect("the server ends in time");
        (code, rest, start.elapsed())
    }

    /// Sends SIGTERM, and waits for the end of the process.
    pub async fn stop(self) {
        self.signal("TERM").await;
        let (code, rest, _) = self.end().await;
        assert_eq!((code, rest), (Some(0), Vec::new()));
    }

    /// Kills the process with `kill -9`, and waits for its end.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
