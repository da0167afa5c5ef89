//! The composition root: the only place that names concrete backends. Starts everything, and stops
//! it in order: first unready, then the sockets are sent away, then the requests end, then the work
//! behind them, then the database.

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

/// How long requests and the work behind them may take to end once the process stops.
const FINISH_MAX: Duration = Duration::from_secs(20);

/// Pause between two looks at what is still connected.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);

/// A server that serves.
pub struct Server {
    /// The public address, with the real port.
    pub address: SocketAddr,
    /// The address of metrics and probes, with the real port.
    pub internal_address: SocketAddr,
    /// The rules, for tests and the command line.
    pub services: Arc<Services>,
    /// The database, for tests and the command line.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// This process's sockets.
    pub hub: Arc<Hub>,
    draining: Arc<AtomicBool>,
    /// How long to go on once unready.
    unready: Duration,
    /// Over how long the connections are sent away.
    drain: Duration,
    /// Ends accepting and idle connections.
    stop_listening: CancellationToken,
    /// The work behind the requests.
    tasks: Tasks,
    right_to_serve: RightToServe,
}

/// The replica lock, kept until everything else has ended.
struct RightToServe {
    keeping: Option<JoinHandle<Result<(), Error>>>,
    task: TaskTracker,
    stop: CancellationToken,
}

impl RightToServe {
    fn keep(lock: ReplicaLock) -> Self {
        let (task, stop) = (TaskTracker::new(), CancellationToken::new());
        let keeping = Some(task.spawn(lock.keep(stop.clone())));
        Self { keeping, task, stop }
    }

    async fn give_back(self) {
        self.stop.cancel();
        self.task.close();
        self.task.wait().await;
    }
}

/// Opens the store and composes the services over it, without serving. The command line works with
/// these.
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

/// The embedded database keeps itself up to date; a shared one is only checked, since replicas of
/// two versions meet on it.
async fn prepare(store: &Store, config: &Config) -> Result<(), Error> {
    if matches!(config.store, StoreOptions::Sqlite { .. }) {
        return store.migrate().await;
    }
    match store.pending_migrations().await? {
        0 => Ok(()),
        pending => Err(Error::internal(format!(
            "the database lacks {pending} migrations of this version: run `starling migrate`, then start again"
        ))),
    }
}

/// What this replica shares with others, or has for itself.
struct Cluster {
    bus: Arc<dyn Bus>,
    session_cache: Arc<dyn SessionCache>,
    limiter: Arc<dyn RateLimiter>,
    presence: Arc<dyn Presence>,
    /// Whether the bus works, where there is one to fail.
    health: Option<Arc<BusHealth>>,
}

impl Cluster {
    fn of_one() -> (Self, BusInbox) {
        let (bus, inbox) = MemoryBus::new();
        let (session_cache, limiter) =
            (Arc::<MemorySessionCache>::default(), Arc::<MemoryRateLimiter>::default());
        let presence = Arc::<MemoryPresence>::default();
        (Self { bus: Arc::new(bus), session_cache, limiter, presence, health: None }, inbox)
    }

    /// Joins the configured cluster.
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
    /// Starts to serve.
    ///
    /// # Errors
    /// An address that is taken, a database that is away or has another schema.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, Error> {
        let store = Store::open(&config.store).await?;
        prepare(&store, &config).await?;
        let lock = store.hold_replica_lock(config.redis.is_some()).await?;

        let (tasks, stop_listening) = (Tasks::default(), CancellationToken::new());
        set_clock(&store, &clock).await?;
        store.watch_log(Epoch::new(clock.now(), &mut rand::rng())).await?;
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

        let warm = store.clone();
        drop(tasks.spawn(async move { warm.warm_up().await }));
        tasks.spawn_vital("hub", hub.clone().run(inbox));
        tasks.spawn_vital("cleanup", services.cleanup.clone().run(tasks.stop_token()));
        tasks.spawn_vital(
            "health",
            services.health.clone().watch(store.clone(), tasks.stop_token()),
        );
        tasks.spawn_vital("metrics", upkeep(tasks.stop_token()));

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
            store,
            clock,
            hub,
            draining,
            unready: config.unready,
            drain: config.drain,
            stop_listening,
            tasks,
            right_to_serve: RightToServe::keep(lock),
        })
    }

    /// Ends only if this process must not go on to serve, with the reason: another one serves on
    /// its database, or a part of this one is broken.
    pub async fn must_stop(&mut self) -> Error {
        let keeping = self.right_to_serve.keeping.take();
        let losing_the_right = async {
            if let Some(keeping) = keeping
                && let Ok(Err(error)) = keeping.await
            {
                return error;
            }
            std::future::pending().await
        };
        tokio::select! {
            error = losing_the_right => error,
            () = self.tasks.broken() => {
                // Whoever is still here is not served: the sooner they go elsewhere, the better.
                (self.unready, self.drain) = (Duration::ZERO, Duration::ZERO);
                Error::internal("a part of the server broke (see the log), so it ends, to be started anew")
            }
        }
    }

    /// Sends the clients away, lets what is under way end, and stops.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Relaxed);
        // The load balancer needs a moment to notice; until then requests still come.
        tokio::time::sleep(self.unready).await;
        self.hub.drain(self.drain).await;
        self.stop_listening.cancel();
        let finished = async {
            // Sockets and requests first: the appenders must still answer them.
            while self.hub.connections() > 0 {
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(FINISH_MAX, finished).await;
        self.tasks.stop();
        if tokio::time::timeout(FINISH_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("some work did not end in time and is given up");
        }
        self.store.close().await;
        self.right_to_serve.give_back().await;
    }
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

/// Has the clock show the database's time, so that what expires does so on all replicas at once.
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
            tracing::warn!(%error, "could not read the database's clock");
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
