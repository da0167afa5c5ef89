//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

/// Loads a Starling deployment, measures it, and proves that it lost, doubled and reordered
/// nothing.
#[derive(Debug, Parser)]
#[command(name = "starling-loadtest", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a deployment that runs already.
    Run {
        /// What to do there, one after the other.
        #[arg(required = true, value_enum)]
        workloads: Vec<Workload>,
        /// The replicas, as `http://host:port`, separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        target: Vec<String>,
        /// The JSON lines that `starling user create --count K --with-session` printed.
        #[arg(long)]
        accounts: PathBuf,
        /// Where the servers tell their metrics, as `http://host:port/metrics`, separated by
        /// commas: what they counted is printed with each workload.
        #[arg(long, value_delimiter = ',')]
        metrics: Vec<String>,
        /// Load a target that is not this machine.
        #[arg(long)]
        i_own_this: bool,
        /// How to load it.
        #[command(flatten)]
        load: Load,
        /// What to write.
        #[command(flatten)]
        output: Output,
    },
    /// Start a deployment with everything it needs, load it, and remove it.
    ///
    /// The servers get this program's environment, but for where they listen and what they store
    /// in.
    Local {
        /// What to do there, one after the other.
        #[arg(required = true, value_enum)]
        workloads: Vec<Workload>,
        /// Measure this many replicas on Postgres and Redis; several behind a load balancer.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
        replicas: Option<u16>,
        /// Clients connect to the replicas in turn, instead of to a load balancer in front of them.
        #[arg(long, requires = "replicas")]
        direct: bool,
        /// Measure embedded mode; with --replicas, after them. The default without either.
        #[arg(long)]
        embedded: bool,
        /// The server's program; by default the one beside this program.
        #[arg(long)]
        starling: Option<PathBuf>,
        /// Accounts to make; by default as many as the workloads need.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        users: Option<u32>,
        /// Measure the floors too, and print each figure as a ratio to its floor.
        #[arg(long)]
        floors: bool,
        /// How to load it.
        #[command(flatten)]
        load: Load,
        /// What to write.
        #[command(flatten)]
        output: Output,
    },
    /// Compare the ratios to floors of runs with committed ones; fail if the median of one is more
    /// than 25 % worse.
    Gate {
        /// What each run wrote with --json.
        #[arg(required = true)]
        json: Vec<PathBuf>,
        /// The committed ratios.
        #[arg(long, default_value = "loadtest/ratios.json")]
        against: PathBuf,
        /// Write the runs' ratios there instead of comparing.
        #[arg(long)]
        accept: bool,
    },
    /// The load balancer in front of several replicas. Started by this program itself.
    #[command(hide = true)]
    Balancer {
        /// The replicas, as `http://host:port`, separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        to: Vec<String>,
    },
    /// The bare servers that results are held against. Started by this program itself.
    #[command(hide = true)]
    Floor {
        /// Insert what comes into a table of this database, `postgres://…` or `sqlite://…`; without
        /// it, echo.
        #[arg(long)]
        database: Option<String>,
    },
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Connections that are held.
    Idle,
    /// Senders, each in a private chat of their own, over WebSocket.
    Sends,
    /// A channel with many members online.
    Fanout,
    /// Builds a community: private chats with messages.
    Seed,
    /// Lists and history of a seeded community.
    Inbox,
    /// Every socket is dropped at once, while people write; then, in `local`, the replicas are
    /// restarted one by one.
    Storm,
    /// A day of ordinary use: reads, sends, typing, read markers, presence, edits, reconnects.
    Mix,
    /// Logins, revocations, joining and leaving.
    Churn,
    /// In `local` with several replicas: one is killed while people write, and some of them hang
    /// up.
    Crash,
    /// In `local` with several replicas: every second, what these hear of each other by is cut,
    /// while people write.
    Cut,
    /// In `local` with several replicas: the last one holds all connections and is killed; they
    /// come back to the others.
    Loss,
    /// One account does as much as it can, while others write. The server must limit rates; in
    /// `local` it does.
    Greedy,
}

impl Workload {
    /// Its word on the command line.
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

/// How to load a deployment.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Load {
    /// How long each workload is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How long each goes on before it is measured.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    /// sends, greedy: senders at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub senders: u16,
    /// sends, fanout, greedy: messages a second in all, sent when they are due whatever the answers
    /// do (open loop); without it each sender waits for its answer (closed loop).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// sends: the other member of each chat is online too, and delivery is measured.
    #[arg(long)]
    pub peers_online: bool,
    /// sends: raise the number of users, all of them online, until the p99 of delivery is over this
    /// many milliseconds or one send in a thousand fails; print the largest community that held.
    /// Begins with twice --senders.
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub until_slo: Option<f64>,
    /// With --until-slo: messages that a user writes a minute.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    pub per_minute: f64,
    /// fanout: members online.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub members: u16,
    /// fanout: so many of the members read nothing until the end. They must be told everything all
    /// the same.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub slow: u16,
    /// sends, fanout: the length of a text, in bytes, beyond some thirty.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=3900))]
    pub text_bytes: u16,
    /// idle, loss: connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub connections: u16,
    /// seed, inbox: messages of each chat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(50..=100_000))]
    pub messages: u32,
    /// seed, inbox, storm, mix, churn, crash, cut: users.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(6..=5000))]
    pub people: u16,
    /// Seeds what workloads choose.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What to write.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Write everything measured to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write a page with charts to this file.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Write hardware, versions, settings, figures and ratios to this file, as Markdown.
    #[arg(long)]
    pub results: Option<PathBuf>,
}

/// A number above 0.
fn positive(word: &str) -> Result<f64, String> {
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("not a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
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
