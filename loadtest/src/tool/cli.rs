//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

/// Loads a Starling deployment, measures it, and checks that no message was lost, duplicated or
/// reordered.
#[derive(Debug, Parser)]
#[command(name = "starling-loadtest", version, disable_help_subcommand = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// A command with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a running deployment.
    Run {
        /// Workloads to run, in this order.
        #[arg(required = true, value_enum)]
        workloads: Vec<Workload>,
        /// Addresses of the replicas, as `http://host:port`, separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        target: Vec<String>,
        /// File with the output of `starling user create --count K --with-session`.
        #[arg(long)]
        accounts: PathBuf,
        /// URLs of the servers' metrics, as `http://host:port/metrics`, separated by commas. The
        /// growth of each counter is printed with each workload.
        #[arg(long, value_delimiter = ',')]
        metrics: Vec<String>,
        /// Allow targets on other machines.
        #[arg(long)]
        i_own_this: bool,
        /// Size and pace of the load.
        #[command(flatten)]
        load: Load,
        /// Output files.
        #[command(flatten)]
        output: Output,
    },
    /// Start a deployment with its databases, load it, and remove it.
    ///
    /// The servers inherit the environment of this program, except their addresses, data directory,
    /// databases, log level and rate limits.
    Local {
        /// Workloads to run, in this order.
        #[arg(required = true, value_enum)]
        workloads: Vec<Workload>,
        /// Start this many replicas on Postgres and Redis; two or more behind a load balancer.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
        replicas: Option<u16>,
        /// Connect clients directly to the replicas in turn, without a load balancer.
        #[arg(long, requires = "replicas")]
        direct: bool,
        /// Measure embedded mode; with --replicas, after them. The default without --replicas.
        #[arg(long)]
        embedded: bool,
        /// Path of the server binary; by default `starling` in the directory of this program.
        #[arg(long)]
        starling: Option<PathBuf>,
        /// Number of accounts to create; by default as many as the workloads need.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        users: Option<u32>,
        /// Also measure floors: bare servers under the same load. Figures are then also printed as
        /// ratios to them.
        #[arg(long)]
        floors: bool,
        /// Size and pace of the load.
        #[command(flatten)]
        load: Load,
        /// Output files.
        #[command(flatten)]
        output: Output,
    },
    /// Compare the ratios of several runs with the committed ratios; fail if the median of any
    /// ratio regressed by more than 25 %.
    Gate {
        /// Files that runs wrote with --json.
        #[arg(required = true)]
        json: Vec<PathBuf>,
        /// File with the committed ratios.
        #[arg(long, default_value = "loadtest/ratios.json")]
        against: PathBuf,
        /// Write the ratios of the runs to that file instead of comparing.
        #[arg(long)]
        accept: bool,
    },
    /// Run the load balancer in front of several replicas. This program starts it itself.
    #[command(hide = true)]
    Balancer {
        /// Addresses of the replicas, as `http://host:port`, separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        to: Vec<String>,
    },
    /// Run the bare server of the floors. This program starts it itself.
    #[command(hide = true)]
    Floor {
        /// Insert each frame into a table of this database (`postgres://…` or `sqlite://…`) before
        /// the echo.
        #[arg(long)]
        database: Option<String>,
    },
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Holds idle connections.
    Idle,
    /// Sends messages over WebSocket, each sender in its own private chat.
    Sends,
    /// Sends messages into one channel with many members online.
    Fanout,
    /// Creates private chats and fills them with messages.
    Seed,
    /// Reads the chat lists and the history of seeded chats.
    Inbox,
    /// Drops every connection at once while users write; then, in `local`, restarts the replicas
    /// one by one.
    Storm,
    /// Ordinary use: reads, sends, typing, read markers, presence, edits, reconnects.
    Mix,
    /// Logs in, revokes sessions, joins and leaves chats.
    Churn,
    /// `local` with several replicas only: kills one replica while users write and some of them
    /// disconnect.
    Crash,
    /// `local` with several replicas only: cuts the Redis subscriptions of the replicas every
    /// second while users write.
    Cut,
    /// `local` with several replicas only: kills the replica that holds all connections; its
    /// clients reconnect to the others.
    Loss,
    /// One account makes as many requests as it can while other users write. The server must limit
    /// rates; `local` enables this.
    Greedy,
}

impl Workload {
    /// The workload's name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Sends => "sends",
            Self::Fanout => "fanout",
            Self::Seed => "seed",
            Self::Inbox => "inbox",
            Self::Storm => "storm",
            Self::Mix => "mix",
            Self::Churn => "churn",
            Self::Crash => "crash",
            Self::Cut => "cut",
            Self::Loss => "loss",
            Self::Greedy => "greedy",
        }
    }
}

/// Size and pace of the load.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Load {
    /// Measured seconds of each workload.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Seconds of load before the measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    /// sends, greedy: concurrent senders.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub senders: u16,
    /// sends, fanout, greedy: total messages per second, sent on schedule without waiting for
    /// answers (open loop). Without it, each sender waits for each answer (closed loop).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// sends: also connect the other member of each chat, and measure delivery.
    #[arg(long)]
    pub peers_online: bool,
    /// sends: find the largest number of online users whose p99 delivery time stays within this
    /// many milliseconds with at most 0.1 % failed sends. Starts with twice --senders.
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub until_slo: Option<f64>,
    /// With --until-slo: messages per user and minute.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    pub per_minute: f64,
    /// fanout: members that are online.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub members: u16,
    /// fanout: how many of the members are slow consumers, which read nothing until the end. They
    /// must then receive every message.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub slow: u16,
    /// sends, fanout: length of a text in bytes, in addition to a prefix of about 30 bytes.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=3900))]
    pub text_bytes: u16,
    /// idle, loss: number of connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub connections: u16,
    /// seed, inbox: messages in each chat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(50..=100_000))]
    pub messages: u32,
    /// seed, inbox, storm, mix, churn, crash, cut: number of users.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(6..=5000))]
    pub people: u16,
    /// Seed of the random choices of the workloads.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Output files.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Write all measurements to this file, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write an HTML page with charts to this file.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Write hardware, versions, settings, figures and ratios to this file, as Markdown.
    #[arg(long)]
    pub results: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_command_lines_parse_and_invalid_ones_do_not() {
        use clap::CommandFactory;

        Cli::command().debug_assert();
        let parsed = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(
            parsed("starling-loadtest run sends --target http://a:1,http://b:2 --accounts f")
                .is_ok()
        );
        assert!(parsed("starling-loadtest local --embedded sends fanout --seconds 3").is_ok());
        assert!(parsed("starling-loadtest local").is_err());
        assert!(parsed("starling-loadtest local --direct sends").is_err());
        assert!(parsed("starling-loadtest run sends --accounts f").is_err());
        assert!(parsed("starling-loadtest local sends --seconds 0").is_err());
        assert!(parsed("starling-loadtest local sends --until-slo -1").is_err());
    }
}
