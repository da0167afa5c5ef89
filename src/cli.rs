//! The command line: `serve` and the operator's other commands.

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

/// Most accounts that one call makes.
const USERS_AT_ONCE_MAX: u32 = 100_000;

/// A chat server that people run themselves.
#[derive(Debug, Parser)]
#[command(name = "starling", version)]
pub struct Cli {
    /// A TOML file of settings; `starling config` prints one to start from.
    #[arg(long, env = "STARLING_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves; the default.
    Serve,
    /// Brings the database's schema up to date.
    Migrate,
    /// Prints the code of a new invite, also while the server runs.
    Invite {
        /// How many may register with it.
        #[arg(long)]
        uses: Option<i64>,
        /// How long it works, in seconds.
        #[arg(long)]
        expires_in_s: Option<i64>,
    },
    /// Works on the log's epoch.
    Epoch {
        #[command(subcommand)]
        command: EpochCommand,
    },
    /// Works on accounts.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Checks the configuration and what the server depends on.
    Doctor,
    /// Prints a settings file with every key, its meaning and its default.
    Config,
    /// Prints the `OpenAPI` document.
    Openapi,
    /// Prints the `AsyncAPI` document.
    Asyncapi,
}

#[derive(Debug, Subcommand)]
enum EpochCommand {
    /// Gives the log a new epoch and prints it: every client reloads its chats. For after a restore
    /// that the server can't detect: rows that were put back into the same tables, or a data
    /// directory put back together with `starling.epoch`. Works also while the server runs, which
    /// follows within a second or two.
    Renew,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Makes accounts with random passwords and prints one JSON object a line.
    Create {
        /// The login; with --count followed by a number.
        #[arg(long)]
        login: String,
        /// The name to show; the login if absent.
        #[arg(long)]
        name: Option<String>,
        /// Makes so many accounts, `LOGIN1` to `LOGINn`.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_AT_ONCE_MAX)))]
        count: Option<u32>,
        /// Logs each in and prints its token.
        #[arg(long)]
        with_session: bool,
    },
}

/// Why a command failed, as an exit code and one sentence.
#[derive(Debug)]
pub enum Failure {
    /// Exit 2: bad usage or configuration.
    Usage(String),
    /// Exit 1: anything else.
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // A field that is wrong came from a flag.
        if error.kind() == Kind::Invalid {
            Self::Usage(in_words(&error))
        } else {
            Self::Other(in_words(&error))
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// An error with its cause, for the operator, who may know it.
fn in_words(error: &Error) -> String {
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
            "nobody is here yet: register the first account with this invite, within a week\n  {url}/join#{code}\n"
        ))?;
    }
    print(&format!("listening on http://{}\n", server.address))?;
    tracing::info!(address = %server.address, internal = %server.internal_address, "serving");
    let reason = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        error = server.must_stop() => Err(error),
    };
    let why = reason.as_ref().map_or_else(in_words, |signal| (*signal).to_owned());
    tracing::info!(reason = why, "stopping");
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
    let before = store.watch_log(fresh()).await?;
    let epoch = store.renew_epoch(before, fresh(), "the operator said so").await?;
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
    // A few more than hash at once, so that the database works meanwhile; printed in the order of
    // their numbers.
    let mut made = stream::iter(logins)
        .map(|login| {
            let (services, name) = (services.clone(), name.unwrap_or(&login).to_owned());
            async move { services.accounts.make_user(&login, &name, with_session).await }
        })
        .buffered(parallel * 2);
    while let Some(user) = made.next().await {
        let user = user?;
        let mut line =
            json!({ "user_id": user.user_id, "login": user.login, "password": user.password });
        if let (Some(token), Some(object)) = (user.token, line.as_object_mut()) {
            object.insert("token".to_owned(), token.into());
        }
        print(&format!("{line}\n"))?;
    }
    drop(made);
    store.close().await;
    Ok(())
}

async fn doctor(config: &Config) -> Result<(), Failure> {
    let mut ill = false;
    let mut say = |fine: bool, what: &str| {
        ill |= !fine;
        print(&format!("{} {what}\n", if fine { "ok   " } else { "FAULT" }))
    };
    say(true, "the configuration can be read")?;
    for warning in config.warnings() {
        print(&format!("warn  {warning}\n"))?;
    }
    if let Some(warning) =
        listener::file_warning(listener::raise_file_limit(), config.limits.connections_max)
    {
        print(&format!("warn  {warning}\n"))?;
    }
    match &config.store {
        StoreOptions::Postgres { .. } if config.redis.is_some() => {
            say(true, "mode: a fleet on Postgres and Redis")?
        }
        StoreOptions::Postgres { .. } => say(true, "mode: Postgres, one replica")?,
        StoreOptions::Sqlite { dir } => {
            say(true, &format!("mode: embedded, SQLite in {}", dir.display()))?
        }
    }
    match Store::open(&config.store).await {
        Err(error) => say(false, &format!("the database can't be opened: {}", in_words(&error)))?,
        Ok(store) => {
            say(true, "the database answers")?;
            match store.pending_migrations().await {
                Ok(0) => say(true, "its schema is up to date")?,
                Ok(pending) if store.is_embedded() => {
                    say(true, &format!("{pending} migrations will be applied at start"))?;
                }
                Ok(pending) => say(
                    false,
                    &format!("{pending} migrations are missing: run `starling migrate`"),
                )?,
                Err(error) => {
                    say(false, &format!("its schema can't be read: {}", in_words(&error)))?
                }
            }
            store.close().await;
        }
    }
    if let Some((address, _)) = &config.redis {
        match cluster::redis::examine(address).await {
            Ok(version) => say(true, &format!("{address} answers: version {version}"))?,
            Err(error) => {
                say(false, &format!("{address} can't be used: {error}; check REDIS_URL"))?
            }
        }
    }
    for address in [config.listen, config.internal_listen] {
        match std::net::TcpListener::bind(address) {
            Ok(_) => say(true, &format!("{address} is free"))?,
            Err(error) => print(&format!(
                "warn  {address} can't be listened on: {error} (is the server running?)\n"
            ))?,
        }
    }
    if ill {
        Err(Failure::Other("something is wrong; see the lines marked FAULT".to_owned()))
    } else {
        Ok(())
    }
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
