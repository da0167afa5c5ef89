//! A server for each test, and clients that check each answer against the server's documents.

mod balancer;
mod client;
mod contract;
mod database;
mod postgres;
mod proxy;
mod redis;
mod socket;

pub use balancer::{Balancer, Choice};
pub use client::{Answer, User};
pub use database::{Backend, Database, execute, execute_at, lock_waits, postgres_url};
pub use postgres::OwnPostgres;
pub use proxy::{Mode, Proxy, Way};
pub use redis::{OwnRedis, command as redis_command};
pub use socket::Socket;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use starling::config::{Config, Settings};
use starling::model::Clock;
use starling::model::limits::PasswordCost;
use starling::server::Server;
use starling::service::Services;
use starling::store::Store;
use starling::worker::Cleanup;
use tempfile::TempDir;

/// Runs each named test on SQLite, on Postgres, and on two replicas over Postgres and Redis, where
/// consecutive requests and sockets reach different replicas: `everywhere!(a_promise, another);`
macro_rules! everywhere {
    ($($name:ident),+ $(,)?) => {
        crate::support::everywhere_by!(crate::support::run, $($name),+);
    };
}
pub(crate) use everywhere;

/// Like [`everywhere`], with a function of the file in place of [`run`]:
/// `everywhere_by!(super::run_with_limits, a_promise);`
macro_rules! everywhere_by {
    ($run:path, $($name:ident),+ $(,)?) => {
        crate::support::on_both_databases_by!($run, $($name),+);
        crate::support::on_backend!(on_a_fleet, Fleet, $run, $($name),+);
    };
}
pub(crate) use everywhere_by;

/// Runs each named test on SQLite and on Postgres: `on_both_databases!(a_promise, another);`
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        crate::support::on_both_databases_by!(crate::support::run, $($name),+);
    };
}
pub(crate) use on_both_databases;

/// Like [`on_both_databases`], with a function of the file in place of [`run`].
macro_rules! on_both_databases_by {
    ($run:path, $($name:ident),+ $(,)?) => {
        crate::support::on_backend!(on_sqlite, Sqlite, $run, $($name),+);
        crate::support::on_backend!(on_postgres, Postgres, $run, $($name),+);
    };
}
pub(crate) use on_both_databases_by;

/// A module that runs each named test on one backend.
macro_rules! on_backend {
    ($module:ident, $backend:ident, $run:path, $($name:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $run(crate::support::Backend::$backend, super::$name).await;
                }
            )+
        }
    };
}
pub(crate) use on_backend;

/// Starts a server, runs a test on it, stops the server and removes its database.
pub async fn run<F: Future<Output = ()>>(backend: Backend, test: impl FnOnce(TestServer) -> F) {
    run_with(backend, |_| {}, test).await;
}

/// Like [`run`], with some settings changed.
pub async fn run_with<F: Future<Output = ()>>(
    backend: Backend,
    change: impl FnOnce(&mut Settings),
    test: impl FnOnce(TestServer) -> F,
) {
    let server = TestServer::with(backend, change).await;
    let cleanup = server.clone();
    test(server).await;
    cleanup.stop().await;
}

/// At full cost, hashing passwords would take a quarter of the CPU time of all tests.
const CHEAP_PASSWORDS: PasswordCost = PasswordCost { memory_kib: 32, passes: 1 };

/// The server of one test, without rate limits and with a clock that the test moves. Clones share
/// the server.
#[derive(Clone)]
pub struct TestServer {
    inner: Arc<Inner>,
}

struct Inner {
    servers: tokio::sync::Mutex<Vec<Server>>,
    services: Arc<Services>,
    store: Store,
    address: SocketAddr,
    _balancer: Option<Balancer>,
    internal_address: SocketAddr,
    clock: Clock,
    database: database::Database,
    dir: TempDir,
    cleanup: Arc<Cleanup>,
    users: AtomicU32,
}

impl TestServer {
    /// A server with the settings of most tests.
    pub async fn start(backend: Backend) -> Self {
        Self::with(backend, |_| {}).await
    }

    /// A server with some settings changed.
    pub async fn with(backend: Backend, change: impl FnOnce(&mut Settings)) -> Self {
        Self::tuned(backend, change, |_| {}).await
    }

    /// A server with some settings changed, and what no setting changes.
    pub async fn tuned(
        backend: Backend,
        change: impl FnOnce(&mut Settings),
        tune: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = database::Database::create(backend).await;
        let mut settings = settings(dir.path(), database.url());

        let clock = Clock::system();
        let replicas = if backend == Backend::Fleet { 2 } else { 1 };
        if backend == Backend::Fleet {
            settings.redis_url = Some(redis_url());
            settings.redis_prefix = Some(format!("test-{:016x}", rand::random::<u64>()));
        }

        change(&mut settings);
        let mut config = Config::resolve(settings, None).unwrap();
        config.password_cost = CHEAP_PASSWORDS;
        tune(&mut config);

        let mut servers = Vec::new();
        for _ in 0..replicas {
            servers.push(Server::start(config.clone(), clock.clone()).await.unwrap());
        }

        let balancer = match backend {
            Backend::Fleet => {
                let addresses = servers.iter().map(|server| server.address).collect();
                Some(Balancer::start(addresses, Choice::Next).await)
            }
            _ => None,
        };

        let address = balancer.as_ref().map_or(servers[0].address, |balancer| balancer.address);
        let (internal_address, services) =
            (servers[0].internal_address, servers[0].services.clone());
        let store = servers[0].store.clone();
        let cleanup = servers[0].cleanup.clone();
        let servers = tokio::sync::Mutex::new(servers);
        let users = AtomicU32::new(0);

        Self {
            inner: Arc::new(Inner {
                servers,
                services,
                store,
                address,
                _balancer: balancer,
                internal_address,
                clock,
                database,
                dir,
                cleanup,
                users,
            }),
        }
    }

    /// A fleet, and the prefix of its keys in Redis.
    pub async fn fleet() -> (Self, String) {
        let mut prefix = String::new();
        let server = Self::with(Backend::Fleet, |settings| {
            prefix.clone_from(settings.redis_prefix.as_ref().unwrap());
        })
        .await;
        (server, prefix)
    }

    /// `http://host:port` of the public port.
    pub fn base(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// `host:port` of the public port.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// `http://host:port` of the internal port.
    pub fn internal_base(&self) -> String {
        format!("http://{}", self.inner.internal_address)
    }

    /// The number of authenticated sockets on all replicas.
    pub async fn connections(&self) -> usize {
        self.inner.servers.lock().await.iter().map(|server| server.hub.connections()).sum()
    }

    /// The services, for actions that no client can request.
    pub fn services(&self) -> &Services {
        &self.inner.services
    }

    /// The cleanup of the first replica.
    pub fn cleanup(&self) -> &Cleanup {
        &self.inner.cleanup
    }

    /// The store of the first replica.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Advances the server's clock: expiry, rates, idle sessions. Timers do not follow it.
    pub fn advance(&self, span: Duration) {
        self.inner.clock.advance(span);
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// The URL of this test's own Postgres database; `None` on SQLite.
    pub fn database_url(&self) -> Option<String> {
        self.inner.database.url()
    }

    /// A connection to this test's own Postgres database.
    pub async fn postgres(&self) -> PgConnection {
        PgConnection::connect(&self.database_url().unwrap()).await.unwrap()
    }

    /// Runs statements on the server's database.
    pub async fn execute(&self, sql: &str) {
        let sqlite = || format!("sqlite://{}", self.dir().join("starling.db").display());
        execute_at(&self.database_url().unwrap_or_else(sqlite), sql).await;
    }

    /// An account with a new session, named `u1`, `u2`, …
    pub async fn user(&self) -> User {
        let number = self.inner.users.fetch_add(1, Ordering::Relaxed) + 1;
        self.user_named(&format!("u{number}")).await
    }

    /// An account with this login and name, and a new session.
    pub async fn user_named(&self, login: &str) -> User {
        let made = self.inner.services.accounts.make_user(login, login, true).await.unwrap();
        User::new(
            self.base(),
            made.user_id.to_string(),
            made.login,
            made.password,
            made.token.unwrap(),
        )
    }

    /// A client without a token.
    pub fn stranger(&self) -> User {
        User::new(self.base(), String::new(), String::new(), String::new(), String::new())
    }

    /// The code of an operator's invite.
    pub async fn invite(&self, uses: i64) -> String {
        self.inner.services.invites.create_operator(Some(uses), None).await.unwrap().code
    }

    /// Stops the replicas as SIGTERM does, and removes the database.
    pub async fn stop(&self) {
        let servers = std::mem::take(&mut *self.inner.servers.lock().await);
        if !servers.is_empty() {
            futures_util::future::join_all(servers.into_iter().map(Server::stop)).await;
            self.inner.database.remove().await;
        }
    }
}

/// The tests' Redis; each test uses a prefix of its own.
pub fn redis_url() -> String {
    std::env::vars()
        .find_map(|(key, value)| (key == "STARLING_TEST_REDIS").then_some(value))
        .expect(
            "tests of a fleet need Redis: run them by `make test`, or through \
             tests/with-services.sh",
        )
}

/// Settings with free ports, this data directory and no rate limits.
pub fn settings(dir: &Path, database_url: Option<String>) -> Settings {
    Settings {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        internal_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        data_dir: Some(dir.to_owned()),
        database_url,
        database_connections_max: Some(6),
        rate_limits: Some(starling::config::Switch::Off),
        unready_ms: Some(0),
        drain_ms: Some(0),
        presence_linger_ms: Some(250),
        ..Settings::default()
    }
}

/// Waits until `holds` returns true, at most five seconds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..250 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within five seconds: {what}");
}

/// The `id` in an answer's body.
pub fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_owned()
}
