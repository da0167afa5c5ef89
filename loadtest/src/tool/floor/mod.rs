//! What the same hardware gives without a chat server: every result is held against these.

mod commits;
mod drive;
mod publish;
mod server;

use serde::Serialize;
use starling_loadtest::services::process::ending_with_us;
use tokio::process::Command;

use self::drive::Driven;
use super::cli::Load;
use super::load::inbox::{PAGE, READERS};
use super::site::replica::Replica;
use super::stage::FloorKind;

pub use server::serve;

/// One floor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// What is held against it; absent for one that only informs.
    pub kind: Option<FloorKind>,
    /// What it says.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// The floors of a run; none if they were not asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Floors {
    /// One a row.
    pub rows: Vec<Floor>,
}

impl Floors {
    /// The value of a floor, if it was measured.
    pub fn of(&self, kind: FloorKind) -> Option<f64> {
        self.rows.iter().find(|row| row.kind == Some(kind)).map(|row| row.value)
    }

    fn add_sends(&mut self, sends: Driven) {
        let name = "inserts of a bare server that groups them into commits";
        self.add(Some(FloorKind::GroupedSends), name, sends.rate, "/s");
        self.add(Some(FloorKind::GroupedP50), "such a durable send, p50", sends.p50_ms, "ms");
        self.add(Some(FloorKind::GroupedP99), "such a durable send, p99", sends.p99_ms, "ms");
        self.add(Some(FloorKind::GroupedCpu), "CPU of such a durable send", sends.cpu_us, "µs");
    }

    fn add_reads(&mut self, reads: Driven) {
        self.add(Some(FloorKind::Reads), "pages of 50 rows read from the database by an index", reads.rate, "/s");
        self.add(Some(FloorKind::ReadP50), "such a read, p50", reads.p50_ms, "ms");
        self.add(Some(FloorKind::ReadP99), "such a read, p99", reads.p99_ms, "ms");
    }

    fn add_lone(&mut self, send: Driven, read: Driven) {
        self.add(Some(FloorKind::LoneSendP50), "a durable send, one at a time, p50", send.p50_ms, "ms");
        self.add(Some(FloorKind::LoneSendP99), "a durable send, one at a time, p99", send.p99_ms, "ms");
        self.add(Some(FloorKind::LoneReadP50), "a read, one at a time, p50", read.p50_ms, "ms");
        self.add(Some(FloorKind::LoneReadP99), "a read, one at a time, p99", read.p99_ms, "ms");
    }

    fn add(&mut self, kind: Option<FloorKind>, name: &'static str, value: f64, unit: &'static str) {
        self.rows.push(Floor { kind, name, value, unit });
    }
}

/// Measures the floors, a few seconds each: those of sockets, those of this Postgres, or else of an SQLite of its own, and
/// those of Redis where there is one.
///
/// # Errors
/// If a bare server does not start or does not answer.
pub async fn measure(load: &Load, database: Option<String>, redis_port: Option<u16>) -> Result<Floors, String> {
    let mut floors = Floors::default();
    let (senders, members) = (usize::from(load.senders), usize::from(load.members));
    let echo = bare(&[]).await?;
    let held = drive::hold(&echo, usize::from(load.connections)).await?;
    floors.add(Some(FloorKind::Connection), "memory of a connection of a bare WebSocket server", held.kib, "KiB");
    floors.add(Some(FloorKind::Connects), "connections to a bare WebSocket server", held.connects, "/s");
    let echoes = drive::round_trips(&echo, senders).await?;
    floors.add(None, "echoes of a bare WebSocket server", echoes.rate, "/s");
    let writes = drive::fan_out(&echo, members).await?;
    floors.add(Some(FloorKind::FanOut), "deliveries of a bare WebSocket server", writes.rate, "/s");
    floors.add(Some(FloorKind::FanOutP50), "such a delivery, p50", writes.p50_ms, "ms");
    floors.add(Some(FloorKind::FanOutP99), "such a delivery, p99", writes.p99_ms, "ms");
    floors.add(Some(FloorKind::FanOutCpu), "CPU of such a delivery", writes.cpu_us, "µs");
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let url = database.unwrap_or_else(|| format!("sqlite://{}", dir.path().join("floor.db").display()));
    let commits = bare(&["--database", &url]).await?;
    floors.add_sends(drive::round_trips(&commits, senders).await?);
    let send = drive::round_trips(&commits, 1).await?;
    drop(commits);
    floors.add(None, "commits of one row, one at a time", commits::single_rows(&url).await?, "/s");
    floors.add_reads(commits::pages(&url, READERS, PAGE).await?);
    floors.add_lone(send, commits::pages(&url, 1, PAGE).await?);
    if let Some(port) = redis_port {
        floors.add(None, "PUBLISH on one connection, 64 at once", publish::rate(port).await?, "/s");
    }
    Ok(floors)
}

/// A bare server in a process of its own, so that its memory can be told from this program's.
async fn bare(args: &[&str]) -> Result<Replica, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command: Command = ending_with_us(&own);
    command.arg("floor").args(args).stdin(std::process::Stdio::null());
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    Replica::start(command, &dir.path().join("log")).await
}
