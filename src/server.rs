//! The composition root: the only module that names concrete backends. It starts all parts of a
//! replica and stops them in this order: readiness, WebSocket connections, requests, background
//! tasks, database.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use rand::Rng;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::cluster::memory::{MemoryBus, MemoryPresence, MemoryRateLimiter, MemorySessionCache};
use crate::cluster::redis::{BusHealth, ClusterKey, RedisCluster, ReplicaId};
use crate::cluster::{Bus, BusInbox, Presence, RateLimiter, SessionCache};
use crate::config::Config;
use crate::gateway::{self, Gateway};
use crate::hub::Hub;
use crate::listener::{self, Rules};
use crate::model::limits::CLOCK_EVERY;
use crate::model::{Clock, Epoch, Error};
use crate::presence::PresenceTracker;
use crate::service::{Admission, Hasher, Parts, Services};
use crate::store::{ReplicaLock, Store, StoreOptions};
use crate::tasks::Tasks;
use crate::telemetry;
use crate::wire;
use crate::worker::Cleanup;

/// Time for the connections, and then for the tasks, to end when the replica stops.
const FINISH_MAX: Duration = Duration::from_secs(20);

/// Pause between two checks for open connections.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);

/// A running server.
pub struct Server {
    /// The public address, with the actual port.
    pub address: SocketAddr,
    /// The address of metrics and probes, with the actual port.
    pub internal_address: SocketAddr,
    /// The services, for tests and the command line.
    pub services: Arc<Services>,
    /// The periodic cleanup, for tests.
    pub cleanup: Arc<Cleanup>,
    /// The database, for tests and the command line.
    pub store: Store,
    /// The clock of this replica.
    pub clock: Clock,
    /// The hub, which holds the authenticated connections of this replica.
    pub hub: Arc<Hub>,
    draining: Arc<AtomicBool>,
    /// How long to serve while unready.
    unready: Duration,
    /// Over how long to drain the connections.
    drain: Duration,
    /// Stops the public listener, and closes its idle connections.
    stop_listening: CancellationToken,
    tasks: Tasks,
    replica_lock: HeldReplicaLock,
}

/// The replica lock and the task that holds it. Released after all other parts have stopped.
struct HeldReplicaLock {
    holder: Option<JoinHandle<Result<(), Error>>>,
    task: TaskTracker,
    stop: CancellationToken,
}

impl HeldReplicaLock {
    fn hold(lock: ReplicaLock) -> Self {
        let (task, stop) = (TaskTracker::new(), CancellationToken::new());
        let holder = Some(task.spawn(lock.keep(stop.clone())));
        Self { holder, task, stop }
    }

    async fn release(self) {
        self.stop.cancel();
        self.task.close();
        self.task.wait().await;
    }
}

/// Opens the store and creates the services, without a listener. For the commands of operators.
///
/// # Errors
/// As [`Store::open`].
pub async fn open_services(config: &Config, clock: Clock) -> Result<(Store, Arc<Services>), Error> {
    let store = Store::open(&config.store).await?;
    prepare(&store, config).await?;

    let (cluster, _inbox) = Cluster::of_one();
    let services =
        Services::start(parts(store.clone(), &cluster, config, clock, &Tasks::default())?);
    Ok((store, services))
}

/// Applies pending migrations on SQLite. On Postgres it only checks for them: replicas of an older
/// version may use the database, so the operator decides when to migrate.
async fn prepare(store: &Store, config: &Config) -> Result<(), Error> {
    if matches!(config.store, StoreOptions::Sqlite { .. }) {
        return store.migrate().await;
    }
    match store.pending_migrations().await? {
        0 => Ok(()),
        pending => Err(Error::internal(format!(
            "the database lacks {pending} migrations of this version: \
             run `starling migrate`, then start again"
        ))),
    }
}

/// The backends for the state that replicas share.
struct Cluster {
    bus: Arc<dyn Bus>,
    session_cache: Arc<dyn SessionCache>,
    limiter: Arc<dyn RateLimiter>,
    presence: Arc<dyn Presence>,
    /// The health of the connection to Redis; `None` without Redis.
    health: Option<Arc<BusHealth>>,
}

impl Cluster {
    /// The in-process backends of a single replica.
    fn of_one() -> (Self, BusInbox) {
        let (bus, inbox) = MemoryBus::new();
        let (session_cache, limiter) =
            (Arc::<MemorySessionCache>::default(), Arc::<MemoryRateLimiter>::default());
        let presence = Arc::<MemoryPresence>::default();
        (Self { bus: Arc::new(bus), session_cache, limiter, presence, health: None }, inbox)
    }

    /// Connects to the configured Redis, or uses the in-process backends if there is none.
    async fn join(
        config: &Config,
        store: &Store,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<(Self, BusInbox), Error> {
        let Some(redis) = config.redis.clone() else {
            return Ok(Self::of_one());
        };

        let mut fresh = [0; 32];
        UnwrapErr(SysRng).fill_bytes(&mut fresh);
        let key = ClusterKey(store.cluster_key(fresh).await?);

        let joined = RedisCluster::join(
            redis,
            ReplicaId(rand::random()),
            key,
            store.present_epoch(),
            clock,
            tasks,
        );
        let RedisCluster { bus, inbox, session_cache, limiter, presence, leases: _, health } =
            joined;
        Ok((Self { bus, session_cache, limiter, presence, health: Some(health) }, inbox))
    }
}

fn parts(
    store: Store,
    cluster: &Cluster,
    config: &Config,
    clock: Clock,
    tasks: &Tasks,
) -> Result<Parts, Error> {
    Ok(Parts {
        store,
        bus: cluster.bus.clone(),
        session_cache: cluster.session_cache.clone(),
        limiter: cluster.limiter.clone(),
        clock,
        limits: config.limits.clone(),
        hasher: Hasher::new(config.hashes_at_once_max, config.password_cost)?,
        tasks: tasks.clone(),
    })
}

impl Server {
    /// Starts all parts of the server.
    ///
    /// # Errors
    /// If an address is in use, or the database is unavailable or has another schema.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, Error> {
        let store = Store::open(&config.store).await?;
        prepare(&store, &config).await?;
        let lock = store.hold_replica_lock(config.redis.is_some()).await?;

        let (tasks, stop_listening) = (Tasks::default(), CancellationToken::new());
        set_clock(&store, &clock).await?;
        store.check_log(Epoch::new(clock.now(), &mut rand::rng())).await?;
        let (cluster, inbox) = Cluster::join(&config, &store, &clock, &tasks).await?;
        tasks.spawn_vital("clock", keep_time(store.clone(), clock.clone(), tasks.stop_token()));

        let bus = cluster.bus.clone();
        let presence = {
            let (shared, linger) = (cluster.presence.clone(), config.limits.presence_linger);
            PresenceTracker::new(shared, store.clone(), bus.clone(), clock.clone(), linger)
        };
        tasks.spawn_vital("presence tracker", presence.clone().run(tasks.stop_token()));

        let events_max = config.limits.channel_events_members_max;
        let hub = Hub::new(store.clone(), bus, presence, clock.clone(), tasks.clone(), events_max);
        let services =
            Services::start(parts(store.clone(), &cluster, &config, clock.clone(), &tasks)?);

        tasks.spawn_vital("hub", hub.clone().run(inbox));
        let cleanup = Arc::new(Cleanup::new(store.clone(), &services, clock.clone()));
        tasks.spawn_vital("cleanup", cleanup.clone().run(tasks.stop_token()));
        start_background(&store, &services, &tasks);

        let draining = Arc::<AtomicBool>::default();
        let admission = Admission::new(config.limits.connections_per_address_max);
        let api = Arc::new(Api {
            services: services.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            proxy_warned_at: AtomicI64::new(0),
            draining: draining.clone(),
            admission: admission.clone(),
            is_deaf: Box::new(move || {
                cluster.health.as_ref().is_some_and(|health| health.is_deaf())
            }),
        });
        let gateway = Gateway::new(
            services.clone(),
            hub.clone(),
            clock.clone(),
            config.limits.clone(),
            tasks.clone(),
            config.allowed_origins.clone(),
        );
        let (address, internal_address) =
            listen(&config, api, gateway, admission, &tasks, &stop_listening)?;

        Ok(Self {
            address,
            internal_address,
            services,
            cleanup,
            store,
            clock,
            hub,
            draining,
            unready: config.unready,
            drain: config.drain,
            stop_listening,
            tasks,
            replica_lock: HeldReplicaLock::hold(lock),
        })
    }

    /// Returns only if this process must stop, with the reason: it lost the replica lock to another
    /// process on its database, or a vital task panicked.
    pub async fn must_stop(&mut self) -> Error {
        let holder = self.replica_lock.holder.take();
        let lock_lost = async {
            if let Some(holder) = holder
                && let Ok(Err(error)) = holder.await
            {
                return error;
            }
            std::future::pending().await
        };

        tokio::select! {
            error = lock_lost => error,
            () = self.tasks.broken() => {
                // The replica no longer serves its clients, so they must reconnect to another
                // replica at once.
                (self.unready, self.drain) = (Duration::ZERO, Duration::ZERO);
                Error::internal(
                    "a part of the server broke (see the log): the process ends and must be \
                     restarted",
                )
            }
        }
    }

    /// Drains the connections, waits for the requests and tasks in progress, and stops.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Relaxed);
        // Until the load balancer notices that the replica is unready, it still sends requests.
        tokio::time::sleep(self.unready).await;

        self.hub.drain(self.drain).await;
        self.stop_listening.cancel();

        // The connections end before the tasks: the appenders must still answer their frames.
        let disconnected = async {
            while self.hub.connections() > 0 {
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(FINISH_MAX, disconnected).await;

        self.tasks.stop();
        if tokio::time::timeout(FINISH_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time and are abandoned");
        }
        self.store.close().await;
        self.replica_lock.release().await;
    }
}

/// Starts the background tasks. Their order does not matter.
fn start_background(store: &Store, services: &Services, tasks: &Tasks) {
    let warm = store.clone();
    drop(tasks.spawn(async move { warm.warm_up().await }));

    let health = services.health.clone();
    tasks.spawn_vital("health", health.watch(store.clone(), tasks.stop_token()));
    tasks.spawn_vital("metrics", upkeep(tasks.stop_token()));
}

/// Starts the public and the internal listener. Returns their addresses.
///
/// # Errors
/// As [`listener::bind`].
fn listen(
    config: &Config,
    api: Arc<Api>,
    gateway: Arc<Gateway>,
    admission: Arc<Admission>,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<(SocketAddr, SocketAddr), Error> {
    let public = public_router(&api, gateway, config.listen);
    let internal = api::internal_router(api, || {
        telemetry::exporter().map(PrometheusHandle::render).unwrap_or_default()
    });
    let (listener, internal_listener) =
        (listener::bind(config.listen)?, listener::bind(config.internal_listen)?);
    let address = listener.local_addr().map_err(Error::internal)?;
    let internal_address = internal_listener.local_addr().map_err(Error::internal)?;

    let rules = Rules {
        connections_max: config.limits.connections_max,
        admission: Some(admission),
        trusted_proxies: config.trusted_proxies.clone(),
        patience: config.patience,
    };
    tasks.spawn_vital("listener", listener::serve(listener, public, rules, stop.clone()));

    let rules = Rules {
        connections_max: listener::INTERNAL_CONNECTIONS_MAX,
        admission: None,
        trusted_proxies: Vec::new(),
        patience: config.patience,
    };
    let serving = listener::serve(internal_listener, internal, rules, tasks.stop_token());
    tasks.spawn_vital("internal listener", serving);
    Ok((address, internal_address))
}

#[cfg_attr(
    not(feature = "conformance"),
    expect(unused_variables, reason = "only the echo route asks for the address")
)]
fn public_router(api: &Arc<Api>, gateway: Arc<Gateway>, listen: SocketAddr) -> Router {
    let asyncapi = wire::asyncapi::document().to_string();
    let router = api::router(api.clone(), gateway::router(gateway), asyncapi);

    #[cfg(feature = "conformance")]
    let router = if listen.ip().is_loopback() {
        router.route(
            "/conformance/echo",
            axum::routing::get(|upgrade| async { gateway::echo(upgrade) }),
        )
    } else {
        router
    };
    router
}

/// The `OpenAPI` document of all routes.
pub fn openapi() -> String {
    api::openapi(gateway::openapi()).to_pretty_json().unwrap_or_default()
}

/// Sets the clock to the database's time, so that all replicas agree on what has expired.
async fn set_clock(store: &Store, clock: &Clock) -> Result<(), Error> {
    if let Some(time) = store.time().await? {
        clock.follow(time);
    }
    Ok(())
}

async fn keep_time(store: Store, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CLOCK_EVERY) => {}
        }
        if let Err(error) = set_clock(&store, &clock).await {
            tracing::warn!(
                %error,
                "failed to read the database's clock; the clock keeps its offset until the next try"
            );
        }
    }
}

async fn upkeep(stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(telemetry::UPKEEP_EVERY) => {}
        }
        if let Some(exporter) = telemetry::exporter() {
            exporter.run_upkeep();
        }
    }
}
