//! A server of one's own for every test, and clients that hold each answer against the server's own
//! documents.

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
pub use database::{Backend, Database, postgres_url};
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
use starling::config::{Config, Settings};
use starling::model::Clock;
use starling::model::limits::PasswordCost;
use starling::server::Server;
use starling::service::Services;
use starling::store::Store;
use tempfile::TempDir;

/// Runs each named test on SQLite, on Postgres, and on two replicas over Postgres and Redis of
/// which each request and each socket gets another: `everywhere!(a_promise, another);`
macro_rules! everywhere {
    ($($name:ident),+ $(,)?) => {
        crate::support::on_both_databases!($($name),+);
        mod on_a_fleet {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { crate::support::run(crate::support::Backend::Fleet, super::$name).await; })+
        }
    };
}
pub(crate) use everywhere;

/// Runs each named test once on SQLite and once on Postgres: `on_both_databases!(a_promise,
/// another);`
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { crate::support::run(crate::support::Backend::Sqlite, super::$name).await; })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { crate::support::run(crate::support::Backend::Postgres, super::$name).await; })+
        }
    };
}
pub(crate) use on_both_databases;

/// Starts a server, runs a test on it, stops it and removes what it left.
pub async fn run<F: Future<Output = ()>>(backend: Backend, test: impl FnOnce(TestServer) -> F) {
    run_with(backend, |_| {}, test).await;
}

/// The same with some settings changed.
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

/// Hashing at full cost would take a quarter of the CPU time of all tests.
const CHEAP_PASSWORDS: PasswordCost = PasswordCost { memory_kib: 32, passes: 1 };

/// A server of this test alone, with rate limits off and a clock that the test moves. Clones are
/// the same server.
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
                users,
            }),
        }
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

    /// Authenticated sockets of all replicas.
    pub async fn connections(&self) -> usize {
        self.inner.servers.lock().await.iter().map(|server| server.hub.connections()).sum()
    }

    /// The rules behind the port, for what no client can do.
    pub fn services(&self) -> &Services {
        &self.inner.services
    }

    /// The database behind the port.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The server's clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Makes time pass for the server (expiry, rates, idle sessions; not timers).
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

    /// An account with a fresh session, named `u1`, `u2`, …
    pub async fn user(&self) -> User {
        let number = self.inner.users.fetch_add(1, Ordering::Relaxed) + 1;
        self.user_named(&format!("u{number}")).await
    }

    /// An account with this login and name, and a fresh session.
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

    /// Somebody without a token.
    pub fn stranger(&self) -> User {
        User::new(self.base(), String::new(), String::new(), String::new(), String::new())
    }

    /// The code of an operator's invite.
    pub async fn invite(&self, uses: i64) -> String {
        self.inner.services.invites.create_operator(Some(uses), None).await.unwrap().code
    }

    /// Stops the server as SIGTERM would, and removes its database.
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
        .expect("tests of a fleet need Redis: run them by `make test`, or through tests/with-services.sh")
}

/// Free ports, a directory of its own, rates off.
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

/// Waits until something holds, at most five seconds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..250 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}

/// The chat's id in an answer.
pub fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_owned()
}
