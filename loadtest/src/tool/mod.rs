//! The program `starling-loadtest`.
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`guard`] | checks of the targets and of the open-file limit |
//! | [`stage`] | the input of every workload: addresses, accounts, settings; the figures |
//! | [`load`] | the workloads |
//! | [`light`] | a fast connection that checks the order of revs |
//! | [`meter`], [`watch`], [`proc`] | latencies; a progress line each second; CPU and memory |
//! | [`metrics`] | the counters that the servers expose |
//! | [`site`], [`processes`] | a temporary local deployment, and its processes |
//! | [`balancer`] | the load balancer in front of its replicas |
//! | [`floor`] | the speed of the same hardware without a chat server |
//! | [`report`], [`gate`] | table, JSON, page, Markdown; comparison with committed ratios |

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

/// Parses the command line, runs the command and returns its exit code.
///
/// 0: every check passed. 1: a check failed, or the run failed. 2: bad usage. 130: interrupted.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };

    runtime.block_on(async {
        tokio::select! {
            // An interrupt drops this future. Each process ends, and each folder is removed, when
            // its value is dropped.
            done = execute(cli.command) => match done {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => failed(&error),
            },
            () = interrupted() => {
                eprintln!("interrupted: all started processes are stopped");
                ExitCode::from(130)
            }
        }
    })
}

fn failed(error: &str) -> ExitCode {
    eprintln!("starling-loadtest: {error}");
    ExitCode::FAILURE
}

/// Returns on Ctrl-C or SIGTERM.
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

/// Runs a command. Returns whether every check passed.
async fn execute(command: Command) -> Result<bool, String> {
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
