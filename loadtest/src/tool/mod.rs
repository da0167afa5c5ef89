//! The program around the library.
//!
//! | module | what it knows |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`guard`] | whose deployment may be loaded, and how many files may be open |
//! | [`stage`] | what every workload is given: addresses, accounts, settings; what a figure is |
//! | [`load`] | the workloads |
//! | [`light`] | a connection for speed, which checks revs on the way |
//! | [`meter`], [`watch`], [`proc`] | latencies; a line a second; CPU and memory |
//! | [`metrics`] | what the servers count of themselves |
//! | [`site`], [`processes`] | a deployment of one's own, and what runs in it |
//! | [`balancer`] | what its clients connect to |
//! | [`floor`] | what the hardware gives without a chat server |
//! | [`report`], [`gate`] | table, JSON, page, Markdown; ratios against committed ones |

mod arith;
mod balancer;
mod cli;
mod floor;
mod gate;
mod guard;
mod light;
mod load;
mod meter;
mod metrics;
mod proc;
mod processes;
mod report;
mod runs;
mod site;
mod stage;
mod verdict;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// Parses the command line, does what it says, and says how that went.
///
/// Exit 0: everything held. 1: a promise was broken, or the run could not be made. 2: bad usage.
/// 130: interrupted.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    runtime.block_on(async {
        tokio::select! {
            // Dropped with everything that it started: each process and folder ends with its value.
            done = obey(cli.command) => match done {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => failed(&error),
            },
            () = interrupted() => {
                eprintln!("interrupted: what was started is ended");
                ExitCode::from(130)
            }
        }
    })
}

fn failed(error: &str) -> ExitCode {
    eprintln!("starling-loadtest: {error}");
    ExitCode::FAILURE
}

/// Until Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Whether everything held.
async fn obey(command: Command) -> Result<bool, String> {
    match command {
        Command::Run { workloads, target, accounts, metrics, i_own_this, load, output } => {
            guard::check_targets(&target, i_own_this)?;
            if !metrics.is_empty() {
                guard::check_targets(&metrics, i_own_this)?;
            }
            let lines = std::fs::read_to_string(&accounts)
                .map_err(|it| format!("{}: {it}", accounts.display()))?;
            let accounts = starling_loadtest::workload::accounts_of_json_lines(&lines)?;
            let mut report = report::Report::new(&load, Vec::new());
            report.runs.push(
                runs::on_target(
                    runs::Target { bases: target, metrics },
                    accounts,
                    &workloads,
                    load,
                )
                .await?,
            );
            report.finish(&output)
        }
        Command::Local {
            workloads,
            replicas,
            direct,
            embedded,
            starling,
            users,
            floors,
            load,
            output,
        } => {
            let local =
                runs::Local { workloads, replicas, direct, embedded, starling, users, floors };
            runs::locally(local, load).await?.finish(&output)
        }
        Command::Gate { json, against, accept } => gate::run(&json, &against, accept),
        Command::Balancer { to } => balancer::serve(&to).await.map(|()| true),
        Command::Floor { database } => floor::serve(database).await.map(|()| true),
    }
}
