//! Floors: the performance of bare servers on the same hardware. Figures are compared with them.

mod commits;
mod drive;
mod publish;
mod server;

use serde::Serialize;
use starling_loadtest::services::process::ending_with_us;
use tempfile::TempDir;
use tokio::process::Command;

use super::cli::{Load, Workload};
use super::load::inbox::{PAGE, READERS};
use super::site::replica::Replica;
use super::stage::FloorKind;

pub use server::serve;

/// One measured floor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Identifies the floor in figures; absent if no figure is compared with it.
    pub kind: Option<FloorKind>,
    /// Name in tables.
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

/// The floors of one workload; empty unless `--floors` was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Floors {
    /// One table row each.
    pub rows: Vec<Floor>,
}

impl Floors {
    /// The value of a floor, if it was measured.
    pub fn of(&self, kind: FloorKind) -> Option<f64> {
        self.rows.iter().find(|row| row.kind == Some(kind)).map(|row| row.value)
    }

    /// The mean of these values, measured before a workload, and of those measured after it.
    #[must_use]
    pub fn mean(mut self, after: &Self) -> Self {
        for (row, later) in self.rows.iter_mut().zip(&after.rows) {
            row.value = f64::midpoint(row.value, later.value);
        }
        self
    }

    fn add(&mut self, kind: Option<FloorKind>, name: &'static str, value: f64, unit: &'static str) {
        self.rows.push(Floor { kind, name, value, unit });
    }
}

/// Measures floors next to a deployment: on its Postgres, or on a temporary SQLite database.
#[derive(Debug)]
pub struct Bench {
    load: Load,
    database: String,
    redis_port: Option<u16>,
    _dir: TempDir,
}

impl Bench {
    /// Creates a bench on the Postgres and the Redis of a deployment, if it has them.
    ///
    /// # Errors
    /// If no temporary directory can be created.
    pub fn new(
        load: &Load,
        database: Option<String>,
        redis_port: Option<u16>,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let database = database
            .unwrap_or_else(|| format!("sqlite://{}", dir.path().join("floor.db").display()));
        Ok(Self { load: load.clone(), database, redis_port, _dir: dir })
    }

    /// Measures the floors of a workload, a few seconds each. The caller does this right before and
    /// right after the workload, because the speed of a shared machine changes within minutes.
    ///
    /// # Errors
    /// If a bare server does not start or does not answer.
    pub async fn measure(&self, workload: Workload) -> Result<Floors, String> {
        match workload {
            Workload::Idle => self.sockets().await,
            Workload::Sends => self.commits().await,
            Workload::Fanout => self.fan_out().await,
            Workload::Inbox => self.reads().await,
            Workload::Seed
            | Workload::Storm
            | Workload::Mix
            | Workload::Churn
            | Workload::Crash
            | Workload::Cut
            | Workload::Loss
            | Workload::Greedy => self.one_at_a_time().await,
        }
    }

    async fn sockets(&self) -> Result<Floors, String> {
        let mut floors = Floors::default();
        let echo = bare(&[]).await?;

        let held = drive::hold(&echo, usize::from(self.load.connections)).await?;
        floors.add(
            Some(FloorKind::Connection),
            "memory of a connection of a bare WebSocket server",
            held.kib,
            "KiB",
        );
        floors.add(
            Some(FloorKind::Connects),
            "connections to a bare WebSocket server",
            held.connects,
            "/s",
        );

        let echoes = drive::round_trips(&echo, usize::from(self.load.senders)).await?;
        floors.add(None, "echoes of a bare WebSocket server", echoes.rate, "/s");
        Ok(floors)
    }

    async fn commits(&self) -> Result<Floors, String> {
        let mut floors = Floors::default();
        let commits = bare(&["--database", &self.database]).await?;
        let sends = drive::round_trips(&commits, usize::from(self.load.senders)).await?;
        let name = "inserts of a bare server that groups them into commits";
        floors.add(Some(FloorKind::GroupedSends), name, sends.rate, "/s");
        floors.add(Some(FloorKind::GroupedP50), "such a durable send, p50", sends.p50_ms, "ms");
        floors.add(Some(FloorKind::GroupedP99), "such a durable send, p99", sends.p99_ms, "ms");
        floors.add(Some(FloorKind::GroupedCpu), "CPU of such a durable send", sends.cpu_us, "µs");

        let single = commits::single_rows(&self.database).await?;
        floors.add(None, "commits of one row, one at a time", single, "/s");
        Ok(floors)
    }

    async fn fan_out(&self) -> Result<Floors, String> {
        let mut floors = Floors::default();
        let writes = drive::fan_out(&bare(&[]).await?, usize::from(self.load.members)).await?;
        floors.add(
            Some(FloorKind::FanOut),
            "deliveries of a bare WebSocket server",
            writes.rate,
            "/s",
        );
        floors.add(Some(FloorKind::FanOutP50), "such a delivery, p50", writes.p50_ms, "ms");
        floors.add(Some(FloorKind::FanOutP99), "such a delivery, p99", writes.p99_ms, "ms");
        floors.add(Some(FloorKind::FanOutCpu), "CPU of such a delivery", writes.cpu_us, "µs");

        if let Some(port) = self.redis_port {
            floors.add(
                None,
                "PUBLISH on one connection, 64 at once",
                publish::rate(port).await?,
                "/s",
            );
        }
        Ok(floors)
    }

    async fn reads(&self) -> Result<Floors, String> {
        let mut floors = Floors::default();
        let reads = commits::pages(&self.database, READERS, PAGE).await?;
        floors.add(
            Some(FloorKind::Reads),
            "pages of 50 rows read from the database by an index",
            reads.rate,
            "/s",
        );
        floors.add(Some(FloorKind::ReadP50), "such a read, p50", reads.p50_ms, "ms");
        floors.add(Some(FloorKind::ReadP99), "such a read, p99", reads.p99_ms, "ms");
        Ok(floors)
    }

    async fn one_at_a_time(&self) -> Result<Floors, String> {
        let mut floors = Floors::default();
        let commits = bare(&["--database", &self.database]).await?;
        let send = drive::round_trips(&commits, 1).await?;
        drop(commits);
        let read = commits::pages(&self.database, 1, PAGE).await?;

        floors.add(
            Some(FloorKind::LoneSendP50),
            "a durable send, one at a time, p50",
            send.p50_ms,
            "ms",
        );
        floors.add(
            Some(FloorKind::LoneSendP99),
            "a durable send, one at a time, p99",
            send.p99_ms,
            "ms",
        );
        floors.add(Some(FloorKind::LoneReadP50), "a read, one at a time, p50", read.p50_ms, "ms");
        floors.add(Some(FloorKind::LoneReadP99), "a read, one at a time, p99", read.p99_ms, "ms");
        Ok(floors)
    }
}

/// Starts a bare server in its own process, so that its memory is measured separately.
async fn bare(args: &[&str]) -> Result<Replica, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command: Command = ending_with_us(&own);
    command.arg("floor").args(args).stdin(std::process::Stdio::null());

    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    Replica::start(command, &dir.path().join("log")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_the_mean_of_both_measurements() {
        let floors = |rate, p50| {
            let mut floors = Floors::default();
            floors.add(Some(FloorKind::Reads), "reads", rate, "/s");
            floors.add(Some(FloorKind::ReadP50), "such a read", p50, "ms");
            floors
        };
        assert_eq!(floors(100.0, 1.0).mean(&floors(300.0, 2.0)), floors(200.0, 1.5));
        assert_eq!(floors(100.0, 1.0).of(FloorKind::Connects), None);
    }
}
