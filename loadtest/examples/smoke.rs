//! Starts a server of its own, lets every workload loose on it, and holds the run against every invariant:
//! `cargo run -p starling-loadtest --example smoke -- [seconds] [seed] [kills] [path of the starling binary]`.
//! With `kills` the server is killed and started again so many times while everybody works.
//!
//! Exits with 1, and leaves the record in the temporary directory, if the run is not clean.
#![expect(clippy::print_stdout, reason = "it prints what it found")]

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use starling_loadtest::actor::Actor;
use starling_loadtest::checker::{Evidence, Exposed, Limits, check};
use starling_loadtest::device::{Device, DeviceOptions};
use starling_loadtest::history::{self, Bounds, History};
use starling_loadtest::workload::{self, Community, Work};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

const USERS: usize = 24;
const WRITERS: usize = 16;
const CHATS: usize = 40;
const REQUEST: Duration = Duration::from_secs(10);
const HEAL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().map_or(Ok(20), |seconds| seconds.parse())?;
    let seed = args.next().map_or(Ok(1), |seed| seed.parse())?;
    let kills = args.next().map_or(Ok(0), |kills| kills.parse())?;
    let binary = args.next().map_or_else(|| PathBuf::from("target/debug/starling"), PathBuf::from);
    let dir = std::env::temp_dir().join(format!("starling-smoke-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let clean = smoke(Site { binary: &binary, dir: &dir }, Duration::from_secs(seconds), seed, kills).await?;
    if clean {
        std::fs::remove_dir_all(&dir)?;
    } else {
        println!("the record is in {}", dir.display());
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn smoke(site: Site<'_>, span: Duration, seed: u64, kills: u32) -> Result<bool, Failure> {
    let count = USERS.to_string();
    let made = site.command(&["user", "create", "--login", "u", "--count", &count, "--with-session"]).output().await?;
    let accounts = workload::accounts_of_json_lines(&String::from_utf8(made.stdout)?)?;
    let secrets: Vec<String> =
        accounts.iter().flat_map(|account| [account.token.clone(), account.password.clone()]).collect();
    let mut server = site.serve("127.0.0.1:0").await?;

    let history = History::new(Bounds::default());
    let community = Community::gather(&[server.base.clone()], REQUEST, &history, accounts).await?;
    let scene = Scene::set(&community).await?;
    // The devices go on when the others have stopped.
    let devices_work = Work::new(seed, Duration::ZERO, CancellationToken::new());
    let devices = workload::connect_all(&devices_work, &community.actors, DeviceOptions { seed, ..Default::default() });
    if !workload::wait_until_live(&devices, Duration::from_secs(20)).await {
        return Err("the devices did not connect".into());
    }
    let work = Work::new(seed, Duration::from_millis(20), CancellationToken::new());
    scene.begin(&work, &community.actors, &devices);
    let kill_every = span / (kills + 1);
    for _ in 0..kills {
        watch(&server, &history, kill_every).await;
        server = server.restart(site).await?;
    }
    watch(&server, &history, kill_every).await;
    work.finish().await;

    let healed_us = Some(history.now_us());
    tokio::time::sleep(HEAL + Duration::from_millis(500)).await;
    let log = workload::read_final_log(&community.actors).await?;
    devices_work.finish().await;
    server.process.kill().await?;
    let limits = Limits { healed_us, heal: HEAL, rss_bytes_max: Some(512 * 1024 * 1024), ..Limits::default() };
    let exposed = [Exposed { place: "the server's log".to_owned(), text: site.log()? }];
    let record = history.take();
    let began = Instant::now();
    let report = check(&Evidence { record: &record, log: &log, secrets: &secrets, exposed: &exposed, limits });
    println!("{report}checked in {:?}; the server was killed {kills} times", began.elapsed());
    if !report.is_clean() {
        history::dump(&record, std::fs::File::create(site.dir.join("record.jsonl"))?)?;
        serde_json::to_writer(std::fs::File::create(site.dir.join("log.json"))?, &log)?;
    }
    Ok(report.is_clean())
}

#[derive(Clone, Copy)]
struct Site<'a> {
    binary: &'a Path,
    dir: &'a Path,
}

struct Server {
    process: Child,
    base: String,
    /// Not to be closed: the server prints there.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Site<'_> {
    fn command(self, args: &[&str]) -> Command {
        let mut command = Command::new(self.binary);
        command
            .args(args)
            .env("STARLING_DATA_DIR", self.dir.join("data"))
            .env("STARLING_LISTEN", "127.0.0.1:0")
            .env("STARLING_INTERNAL_LISTEN", "127.0.0.1:0")
            .env("STARLING_RATE_LIMITS", "off")
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .kill_on_drop(true);
        command
    }

    fn log(self) -> std::io::Result<String> {
        std::fs::read_to_string(self.dir.join("server.log"))
    }

    async fn serve(self, address: &str) -> Result<Server, Failure> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("server.log"))?;
        let mut command = self.command(&["serve"]);
        let mut process = command.env("STARLING_LISTEN", address).stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = process.stdout.take().ok_or("the server has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(base) = line.strip_prefix("listening on ") {
                return Ok(Server { process, base: base.to_owned(), _stdout: lines });
            }
        }
        Err("the server did not start".into())
    }
}

impl Server {
    /// Kills it, and starts it at the same address.
    async fn restart(mut self, site: Site<'_>) -> Result<Self, Failure> {
        self.process.kill().await?;
        site.serve(self.base.trim_start_matches("http://")).await
    }
}

/// The chats of the run.
struct Scene {
    hot: String,
    churned: String,
    private: Vec<String>,
}

impl Scene {
    async fn set(community: &Community) -> Result<Self, Failure> {
        let everybody: Vec<usize> = (0..WRITERS).collect();
        let hot = community.group(&everybody).await?;
        let churned = community.group(&[0, 1, 2]).await?;
        let mut private = Vec::new();
        for number in 0..CHATS {
            let peer = (number + 1 + number / WRITERS) % WRITERS;
            private.push(community.private(number % WRITERS, peer).await?);
        }
        Ok(Self { hot, churned, private })
    }

    /// Everything at once.
    fn begin(&self, work: &Work, actors: &[Actor], devices: &[Device]) {
        let hot = || vec![self.hot.clone()];
        workload::hot_chat(work, &actors[..8], &self.hot);
        for device in &devices[8..12] {
            work.spawn(workload::write_on_socket(work.clone(), device.clone(), hot(), 4));
        }
        work.spawn(workload::retry(work.clone(), actors[12].clone(), hot()));
        work.spawn(workload::replay(work.at_pace(Duration::from_millis(150)), actors[13].clone(), hot()));
        let (editor, device) = (actors[14].clone(), Some(devices[14].clone()));
        work.spawn(workload::edit_and_remove(work.clone(), editor, device, self.hot.clone()));
        work.spawn(workload::edit_and_remove(work.clone(), actors[1].clone(), None, self.churned.clone()));
        for (number, actor) in actors[..8].iter().enumerate() {
            let own: Vec<String> = self.private.iter().skip(number).step_by(WRITERS).cloned().collect();
            work.spawn(workload::write(work.clone(), actor.clone(), own.clone()));
            work.spawn(workload::page(work.clone(), actor.clone(), [own, hot()].concat()));
            work.spawn(workload::mark_read(work.clone(), actor.clone(), hot()));
        }
        let comers = actors[WRITERS..].to_vec();
        work.spawn(workload::churn_membership(work.clone(), actors[0].clone(), comers, self.churned.clone()));
        let slow = work.at_pace(Duration::from_millis(1500));
        work.spawn(workload::churn_sessions(slow.clone(), actors[15].clone(), self.hot.clone()));
        work.spawn(workload::cut_now_and_then(work.at_pace(Duration::from_millis(300)), devices.to_vec()));
        work.spawn(workload::stall_now_and_then(slow, devices[3].clone(), Duration::from_secs(5)));
        work.spawn(workload::type_now_and_then(work.clone(), devices.to_vec(), self.hot.clone()));
    }
}

/// Lets time pass, and looks at the server's memory.
async fn watch(server: &Server, history: &History, span: Duration) {
    let until = Instant::now() + span;
    let process = history.name("server");
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(500).min(span)).await;
        if let Some(bytes) = server.process.id().and_then(resident_bytes) {
            history.sample_memory(process, bytes);
        }
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}
