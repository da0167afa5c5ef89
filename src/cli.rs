//! The command line: `serve` and the commands for operators.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster;
use crate::config::{Config, Settings};
use crate::listener;
use crate::model::{Clock, Epoch, Error, Kind};
use crate::server::{self, Server};
use crate::store::{Store, StoreOptions};
use crate::telemetry;
use crate::wire;

/// Accounts that one call of `user create` can make.
const USERS_AT_ONCE_MAX: u32 = 100_000;

/// A self-hosted chat server.
#[derive(Debug, Parser)]
#[command(name = "starling", version)]
pub struct Cli {
    /// TOML file with settings. `starling config` prints a template.
    #[arg(long, env = "STARLING_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server (the default).
    Serve,
    /// Applies the pending migrations of the database's schema.
    Migrate,
    /// Creates an invite and prints its code. Works while the server runs.
    Invite {
        /// Number of accounts that can register with the invite.
        #[arg(long)]
        uses: Option<i64>,
        /// Lifetime of the invite, in seconds.
        #[arg(long)]
        expires_in_s: Option<i64>,
    },
    /// Manages the epoch of the log.
    Epoch {
        #[command(subcommand)]
        command: EpochCommand,
    },
    /// Manages accounts.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Checks the configuration, the database, Redis and the addresses to listen on.
    Doctor,
    /// Prints a settings file with the meaning and the default of every key.
    Config,
    /// Prints the `OpenAPI` document.
    Openapi,
    /// Prints the `AsyncAPI` document.
    Asyncapi,
}

#[derive(Debug, Subcommand)]
enum EpochCommand {
    /// Gives the log a new epoch and prints it. Every client then reloads its chats. Needed after a
    /// restore that the server cannot detect: of rows into the same tables, or of a data directory
    /// together with `starling.epoch`. Works while the server runs; the server uses the new epoch
    /// within about two seconds.
    Renew,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Creates accounts with random passwords and prints one JSON object per line.
    Create {
        /// Login of the account. With --count, a number is appended.
        #[arg(long)]
        login: String,
        /// Name that clients show; if absent, the login.
        #[arg(long)]
        name: Option<String>,
        /// Number of accounts to create, from `LOGIN1` to `LOGINn`.
        #[arg(
            long,
            value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_AT_ONCE_MAX))
        )]
        count: Option<u32>,
        /// Logs each account in and prints its token.
        #[arg(long)]
        with_session: bool,
    },
}

/// The failure of a command: an exit code and one sentence.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: a wrong flag, argument or setting.
    Usage(String),
    /// Exit code 1: any other failure.
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // An invalid field is the value of a flag.
        if error.kind() == Kind::Invalid {
            Self::Usage(cause(&error))
        } else {
            Self::Other(cause(&error))
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// The internal cause of an error, or its detail if it has none. Only for the operator.
fn cause(error: &Error) -> String {
    match &error.source {
        Some(source) => source.to_string().replace('\n', " "),
        None => error.detail.clone().into_owned(),
    }
}

/// Runs a command.
///
/// # Errors
/// See [`Failure`].
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Some(Command::Config) => return Ok(print(&Config::documented_file())?),
        Some(Command::Openapi) => return Ok(print(&format!("{}\n", server::openapi()))?),
        Some(Command::Asyncapi) => {
            return Ok(print(&format!("{:#}\n", wire::asyncapi::document()))?);
        }
        _ => {}
    }

    let config = Config::resolve(cli.settings, cli.config.as_deref()).map_err(Failure::Usage)?;
    telemetry::start_logging(&config.log, config.log_format).map_err(Failure::Usage)?;

    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config).await,
        Command::Migrate => migrate(&config).await,
        Command::Invite { uses, expires_in_s } => invite(&config, uses, expires_in_s).await,
        Command::User { command: UserCommand::Create { login, name, count, with_session } } => {
            create_users(&config, &login, name.as_deref(), count, with_session).await
        }
        Command::Epoch { command: EpochCommand::Renew } => renew_epoch(&config).await,
        Command::Doctor => doctor(&config).await,
        Command::Config | Command::Openapi | Command::Asyncapi => Ok(()),
    }
}

async fn serve(config: Config) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    if let Some(warning) =
        listener::file_warning(listener::raise_file_limit(), config.limits.connections_max)
    {
        tracing::warn!("{warning}");
    }

    telemetry::exporter();
    let public_url = config.public_url.clone();
    let mut server = Server::start(config, Clock::system()).await?;

    let url = public_url.unwrap_or_else(|| format!("http://{}", server.address));
    if server.store.is_empty().await? {
        let code = server.services.invites.first().await?.code;
        print(&format!(
            "nobody is here yet: register the first account with this invite, within a week\n  \
             {url}/join#{code}\n"
        ))?;
    }
    print(&format!("listening on http://{}\n", server.address))?;
    tracing::info!(address = %server.address, internal = %server.internal_address, "serving");

    let reason = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        error = server.must_stop() => Err(error),
    };
    let logged = reason.as_ref().map_or_else(cause, |signal| (*signal).to_owned());
    tracing::info!(reason = logged, "stopping");
    server.stop().await;
    reason.map(drop).map_err(Failure::from)
}

async fn migrate(config: &Config) -> Result<(), Failure> {
    let store = Store::open(&config.store).await?;
    store.migrate().await?;
    tracing::info!("the schema is up to date");
    store.close().await;
    Ok(())
}

async fn invite(
    config: &Config,
    uses: Option<i64>,
    expires_in_s: Option<i64>,
) -> Result<(), Failure> {
    let (store, services) = server::open_services(config, Clock::system()).await?;
    let invite = services.invites.create_operator(uses, expires_in_s).await?;
    print(&format!("{}\n", invite.code))?;
    store.close().await;
    Ok(())
}

async fn renew_epoch(config: &Config) -> Result<(), Failure> {
    let clock = Clock::system();
    let (store, _services) = server::open_services(config, clock.clone()).await?;
    let fresh = || Epoch::new(clock.now(), &mut rand::rng());

    let before = store.check_log(fresh()).await?;
    let epoch = store.renew_epoch(before, fresh(), "renewed by an operator").await?;
    print(&format!("{epoch}\n"))?;
    store.close().await;
    Ok(())
}

async fn create_users(
    config: &Config,
    login: &str,
    name: Option<&str>,
    count: Option<u32>,
    with_session: bool,
) -> Result<(), Failure> {
    let parallel = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config = Config { hashes_at_once_max: parallel, ..config.clone() };
    let (store, services) = server::open_services(&config, Clock::system()).await?;

    let logins: Vec<String> = match count {
        Some(count) => (1..=count).map(|number| format!("{login}{number}")).collect(),
        None => vec![login.to_owned()],
    };

    // Twice as many accounts as hash at the same time, so that the database works during the
    // hashing. The stream yields them in the order of their numbers.
    let mut created = stream::iter(logins)
        .map(|login| {
            let (services, name) = (services.clone(), name.unwrap_or(&login).to_owned());
            async move { services.accounts.make_user(&login, &name, with_session).await }
        })
        .buffered(parallel * 2);

    while let Some(user) = created.next().await {
        let user = user?;
        let mut line =
            json!({ "user_id": user.user_id, "login": user.login, "password": user.password });
        if let (Some(token), Some(object)) = (user.token, line.as_object_mut()) {
            object.insert("token".to_owned(), token.into());
        }
        print(&format!("{line}\n"))?;
    }

    drop(created);
    store.close().await;
    Ok(())
}

async fn doctor(config: &Config) -> Result<(), Failure> {
    let mut is_fine = report(true, "the configuration can be read")?;
    for warning in config.warnings() {
        print(&format!("warn  {warning}\n"))?;
    }
    if let Some(warning) =
        listener::file_warning(listener::raise_file_limit(), config.limits.connections_max)
    {
        print(&format!("warn  {warning}\n"))?;
    }

    let mode = match &config.store {
        StoreOptions::Postgres { .. } if config.redis.is_some() => {
            "several replicas, on Postgres and Redis".to_owned()
        }
        StoreOptions::Postgres { .. } => "one replica, on Postgres".to_owned(),
        StoreOptions::Sqlite { dir } => format!("embedded, SQLite in {}", dir.display()),
    };
    report(true, &format!("mode: {mode}"))?;

    is_fine &= check_store(&config.store).await?;
    if let Some((address, _)) = &config.redis {
        is_fine &= match cluster::redis::examine(address).await {
            Ok(version) => report(true, &format!("{address} answers: version {version}"))?,
            Err(error) => {
                report(false, &format!("{address} can't be used: {error}; check REDIS_URL"))?
            }
        };
    }
    for address in [config.listen, config.internal_listen] {
        match std::net::TcpListener::bind(address) {
            Ok(_) => report(true, &format!("{address} is free")).map(drop)?,
            Err(error) => print(&format!(
                "warn  {address} can't be listened on: {error} (is the server running?)\n"
            ))?,
        }
    }

    if is_fine {
        Ok(())
    } else {
        Err(Failure::Other("a check failed: see the lines that begin with FAULT".to_owned()))
    }
}

/// Checks the database and its schema for `doctor`. Returns whether both are fine.
async fn check_store(options: &StoreOptions) -> Result<bool, Failure> {
    let store = match Store::open(options).await {
        Ok(store) => store,
        Err(error) => {
            return Ok(report(false, &format!("the database can't be opened: {}", cause(&error)))?);
        }
    };
    report(true, "the database answers")?;

    let is_fine = match store.pending_migrations().await {
        Ok(0) => report(true, "its schema is up to date")?,
        Ok(pending) if store.is_embedded() => {
            report(true, &format!("{pending} migrations will be applied at start"))?
        }
        Ok(pending) => {
            report(false, &format!("{pending} migrations are missing: run `starling migrate`"))?
        }
        Err(error) => report(false, &format!("its schema can't be read: {}", cause(&error)))?,
    };
    store.close().await;
    Ok(is_fine)
}

/// Prints one finding of `doctor`. Returns `is_fine`.
fn report(is_fine: bool, finding: &str) -> std::io::Result<bool> {
    print(&format!("{} {finding}\n", if is_fine { "ok   " } else { "FAULT" }))?;
    Ok(is_fine)
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
