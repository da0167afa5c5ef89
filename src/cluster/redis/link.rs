//! Connections to Redis (one server, the master that Sentinels name, or a Redis Cluster) and their
//! pool.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bb8_redis::bb8::{ManageConnection, Pool};
use bb8_redis::redis::aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection};
use bb8_redis::redis::cluster::ClusterClientBuilder;
use bb8_redis::redis::cluster_async::ClusterConnection;
use bb8_redis::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use bb8_redis::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    Pipeline, ProtocolVersion, RedisError, RedisFuture, RedisResult, ScriptInvocation,
    TlsCertificates, TlsMode, Value,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::address::RedisAddress;
use crate::metrics;

/// Deadline of a call, since a client's request may wait for it.
const CALL_MAX: Duration = Duration::from_millis(500);
/// Deadline of opening a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Connections for commands. Each carries many commands at a time. With several connections, a long
/// answer delays only some commands.
const POOL: u32 = 4;
/// Commands in flight to the nodes of a Redis Cluster, where one pipeline cannot carry them.
const AT_ONCE: usize = 64;
/// Time after a failed call in which every call fails at once, so that requests do not wait for an
/// unreachable Redis one after the other.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// A connection to Redis. Clones share it.
#[derive(Clone)]
pub enum Link {
    /// To one server, which may be the master that Sentinels named.
    Single(MultiplexedConnection),
    /// To all nodes of a Redis Cluster.
    Cluster(ClusterConnection),
}

impl Link {
    /// Opens a connection. Messages of subscribed channels go to `push`.
    pub async fn open(
        address: &RedisAddress,
        push: Option<impl AsyncPushSender>,
    ) -> RedisResult<Self> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(CALL_MAX));

        match address {
            RedisAddress::Cluster { nodes, certificates } => {
                let mut builder = ClusterClientBuilder::new(nodes.clone())
                    .use_protocol(ProtocolVersion::RESP3)
                    .connection_timeout(CONNECT_MAX)
                    .response_timeout(CALL_MAX)
                    .retries(2);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                if let Some(push) = push {
                    builder = builder.push_sender(push);
                }

                Ok(Self::Cluster(builder.build()?.get_async_connection().await?))
            }
            RedisAddress::Single(info) => {
                if let Some(push) = push {
                    config = config.set_push_sender(push);
                }

                let client = Client::open(info.as_ref().clone())?;
                Ok(Self::Single(
                    client.get_multiplexed_async_connection_with_config(&config).await?,
                ))
            }
            RedisAddress::Sentinel { sentinels, master, node, certificates } => {
                if let Some(push) = push {
                    config = config.set_push_sender(push);
                }

                // Ask the Sentinels for each connection: the master may have changed.
                let mut client = sentinel_client(sentinels, master, node, certificates.as_ref())?;
                Ok(Self::Single(client.get_async_connection_with_config(&config).await?))
            }
        }
    }

    /// Subscribes to channels; returns once Redis confirms. In a Redis Cluster the channels are
    /// sharded: each belongs to one node, and takes a command of its own.
    pub async fn subscribe(&mut self, channels: Vec<String>) -> RedisResult<()> {
        match self {
            Self::Single(link) => link.subscribe(channels).await,
            Self::Cluster(link) => {
                let subscribe = |channel| {
                    let mut link = link.clone();
                    async move { link.ssubscribe(channel).await }
                };

                stream::iter(channels.into_iter().map(subscribe))
                    .buffered(AT_ONCE)
                    .try_collect()
                    .await
            }
        }
    }

    pub async fn unsubscribe(&mut self, channels: Vec<String>) -> RedisResult<()> {
        match self {
            Self::Single(link) => link.unsubscribe(channels).await,
            Self::Cluster(link) => {
                let unsubscribe = |channel| {
                    let mut link = link.clone();
                    async move { link.sunsubscribe(channel).await }
                };

                stream::iter(channels.into_iter().map(unsubscribe))
                    .buffered(AT_ONCE)
                    .try_collect()
                    .await
            }
        }
    }
}

/// A client that asks Sentinels for the master. `node` supplies the master's login and database;
/// its host is not used.
fn sentinel_client(
    sentinels: &[ConnectionInfo],
    master: &str,
    node: &ConnectionInfo,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let (addresses, login) =
        (sentinels.iter().map(|sentinel| sentinel.addr().clone()), node.redis_settings());

    let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
        .set_client_to_redis_protocol(login.protocol())
        .set_client_to_redis_db(login.db())
        .set_client_to_redis_tcp_settings(node.tcp_settings().clone())
        .set_client_to_sentinel_protocol(login.protocol())
        .set_client_to_sentinel_tcp_settings(node.tcp_settings().clone());

    if matches!(node.addr(), ConnectionAddr::TcpTls { .. }) {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.set_client_to_redis_certificates(certificates.clone());
    }
    if let Some(username) = login.username() {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = login.password() {
        builder = builder.set_client_to_redis_password(password);
    }

    builder.build()
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(link) => link.req_packed_command(cmd),
            Self::Cluster(link) => link.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(link) => link.req_packed_commands(cmd, offset, count),
            Self::Cluster(link) => link.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(link) => link.get_db(),
            Self::Cluster(link) => link.get_db(),
        }
    }
}

/// Opens the pool's connections.
struct Opener(RedisAddress);

struct Pooled {
    link: Link,
    /// A call on the connection failed: it may be half open, or lead to a server that is no longer
    /// the master.
    broken: bool,
}

impl ManageConnection for Opener {
    type Connection = Pooled;
    type Error = RedisError;

    async fn connect(&self) -> RedisResult<Pooled> {
        let link = Link::open(&self.0, None::<tokio::sync::broadcast::Sender<_>>).await?;
        Ok(Pooled { link, broken: false })
    }

    async fn is_valid(&self, pooled: &mut Pooled) -> RedisResult<()> {
        Cmd::ping().exec_async(&mut pooled.link).await
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.broken
    }
}

/// The name of a key or channel. In a Redis Cluster, `tag` decides which node has it.
pub fn key(prefix: &str, kind: &str, tag: &str) -> String {
    format!("{prefix}:{kind}:{{{tag}}}")
}

/// A call of Redis failed, or its outcome is unknown. Each caller has a fallback.
#[derive(Debug)]
pub struct Down;

/// Redis, for commands: a pool, deadlines, and a pause after each failure.
pub struct Redis {
    pool: Pool<Opener>,
    prefix: String,
    is_cluster: bool,
    started: Instant,
    /// Milliseconds since `started` until which no call is made. 0 before the first failure.
    paused_until_ms: AtomicU64,
}

impl Redis {
    /// Redis at this address, all keys and channels under `prefix`. Connects at the first call.
    pub fn new(address: RedisAddress, prefix: String) -> Self {
        let is_cluster = matches!(address, RedisAddress::Cluster { .. });
        let pool = Pool::builder()
            .max_size(POOL)
            .connection_timeout(CONNECT_MAX)
            .retry_connection(false)
            // A ping per call would double its cost. The call itself detects a broken connection.
            .test_on_check_out(false)
            .build_unchecked(Opener(address));

        Self {
            pool,
            prefix,
            is_cluster,
            started: Instant::now(),
            paused_until_ms: AtomicU64::new(0),
        }
    }

    /// The name of a key or channel of this deployment. In a Redis Cluster, `tag` decides which
    /// node has it.
    pub fn key(&self, kind: &str, tag: &str) -> String {
        key(&self.prefix, kind, tag)
    }

    /// The prefix of all keys and channels of this deployment.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`Down`] after half a second, plus up to a second if a connection must be opened; at once
    /// within half a second after a failed call.
    pub async fn command<T: FromRedisValue>(
        &self,
        unit: &'static str,
        cmd: &Cmd,
    ) -> Result<T, Down> {
        self.call(unit, async |link| cmd.query_async(link).await).await
    }

    /// Runs a script.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub async fn script<T: FromRedisValue>(
        &self,
        unit: &'static str,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Down> {
        self.call(unit, async |link| script.invoke_async(link).await).await
    }

    /// Runs commands and drops their answers. One server gets them in order, in one round trip; the
    /// nodes of a Redis Cluster get them separately.
    ///
    /// # Errors
    /// As [`Redis::command`]: a part of the commands may have been executed.
    pub async fn all(&self, unit: &'static str, commands: &[Cmd]) -> Result<(), Down> {
        self.call(unit, async |link| {
            if self.is_cluster {
                let run = |cmd: &Cmd| {
                    let (mut link, cmd) = (link.clone(), cmd.clone());
                    async move { cmd.exec_async(&mut link).await }
                };

                return stream::iter(commands.iter().map(run))
                    .buffered(AT_ONCE)
                    .try_collect()
                    .await;
            }

            let mut pipeline = Pipeline::with_capacity(commands.len());
            for cmd in commands {
                pipeline.add_command(cmd.clone()).ignore();
            }
            pipeline.exec_async(link).await
        })
        .await
    }

    /// Runs a pipeline in one round trip and returns its answers. In a Redis Cluster all of its
    /// keys must have one tag.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub async fn pipeline<T: FromRedisValue>(
        &self,
        unit: &'static str,
        pipeline: &Pipeline,
    ) -> Result<T, Down> {
        self.call(unit, async |link| pipeline.query_async(link).await).await
    }

    /// Whether this is a Redis Cluster, where all keys of a command must be on one node.
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Whether a call failed within the last half second, so that the next one fails at once.
    pub fn is_paused(&self) -> bool {
        self.now_ms() < self.paused_until_ms.load(Ordering::Relaxed)
    }

    async fn call<T>(
        &self,
        unit: &'static str,
        work: impl AsyncFnOnce(&mut Link) -> RedisResult<T>,
    ) -> Result<T, Down> {
        if self.is_paused() {
            return Err(Down);
        }

        let start = Instant::now();
        let result = self.try_call(work).await;
        metrics::redis_call(unit, start.elapsed(), result.is_ok());

        result.map_err(|error| {
            let pause_ms = u64::try_from(PAUSE_AFTER_FAILURE.as_millis()).unwrap_or(u64::MAX);
            let until_ms = self.now_ms() + pause_ms;
            let last_until_ms = self.paused_until_ms.swap(until_ms, Ordering::Relaxed);
            // Only the first failure, and one after five seconds without a failure, are logged; the
            // metric counts them all.
            if last_until_ms == 0 || last_until_ms + 5_000 < until_ms {
                tracing::warn!(
                    %error,
                    unit,
                    "a call of Redis failed; this replica works without Redis until a call succeeds"
                );
            }
            Down
        })
    }

    async fn try_call<T>(
        &self,
        work: impl AsyncFnOnce(&mut Link) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let late = || RedisError::from((ErrorKind::Io, "no answer in time"));
        let mut pooled = self.pool.get().await.map_err(|error| match error {
            bb8_redis::bb8::RunError::User(error) => error,
            bb8_redis::bb8::RunError::TimedOut => late(),
        })?;

        // Broken until the call succeeds: if the future of the call is dropped, the connection is
        // not used again.
        pooled.broken = true;
        let result = in_time(work(&mut pooled.link)).await.unwrap_or_else(|| Err(late()));
        pooled.broken = result.is_err();
        result
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(CALL_MAX, work).await.ok()
}
