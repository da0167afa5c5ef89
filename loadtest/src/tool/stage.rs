//! The input of every workload, and the figures that workloads return.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use starling_loadtest::actor::Account;
use starling_loadtest::client::{Answer, Http};

use super::cli::Load;
use super::light::Light;
use super::processes::Processes;
use super::site::Site;
use super::verdict::Verdict;

/// Concurrent handshakes while a workload is set up.
const HANDSHAKES_MAX: usize = 32;
/// Attempts of a request without an answer, one second apart.
const TRIES: usize = 5;

/// Whether higher or lower values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// For rates.
    Higher,
    /// For latencies, sizes and costs.
    Lower,
}

/// Identifies a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FloorKind {
    /// Memory per connection of a bare WebSocket server.
    Connection,
    /// Connections per second of a bare WebSocket server.
    Connects,
    /// Deliveries per second of a bare server that sends each frame to all connections.
    FanOut,
    /// Median latency of such a delivery.
    FanOutP50,
    /// 99th percentile of its latency.
    FanOutP99,
    /// CPU time of the bare server per delivery.
    FanOutCpu,
    /// Durable sends per second of a bare server that groups them into commits.
    GroupedSends,
    /// Median latency of such a send.
    GroupedP50,
    /// 99th percentile of its latency.
    GroupedP99,
    /// CPU time of the bare server per send.
    GroupedCpu,
    /// Pages per second that clients read directly from the database.
    Reads,
    /// Median latency of such a read.
    ReadP50,
    /// 99th percentile of its latency.
    ReadP99,
    /// Median latency of durable sends, one at a time.
    LoneSendP50,
    /// 99th percentile of their latency.
    LoneSendP99,
    /// Median latency of reads, one at a time.
    LoneReadP50,
    /// 99th percentile of their latency.
    LoneReadP99,
}

impl FloorKind {
    /// Whether the gate compares figures with this floor. A 99th percentile varies too much from
    /// run to run.
    pub fn is_steady(self) -> bool {
        use FloorKind::{FanOutP99, GroupedP99, LoneReadP99, LoneSendP99, ReadP99};
        !matches!(self, FanOutP99 | GroupedP99 | ReadP99 | LoneSendP99 | LoneReadP99)
    }
}

/// A measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Name; the same in every run.
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// Whether higher or lower values are better.
    pub better: Better,
    /// The floor to compare with.
    pub floor: Option<FloorKind>,
}

impl Figure {
    /// A figure for which higher is better.
    pub fn rate(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, better: Better::Higher, floor: None }
    }

    /// A figure for which lower is better.
    pub fn cost(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, better: Better::Lower, floor: None }
    }

    /// The same with a floor.
    #[must_use]
    pub fn over(self, floor: FloorKind) -> Self {
        Self { floor: Some(floor), ..self }
    }

    /// The same, with a floor if `alike`: if both were measured the same way.
    #[must_use]
    pub fn over_if(self, alike: bool, floor: FloorKind) -> Self {
        if alike { self.over(floor) } else { self }
    }
}

/// A deployment, accounts on it, and the settings of the load.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The addresses for clients: that of the balancer, or those of the replicas.
    pub bases: Vec<String>,
    /// Accounts with sessions.
    pub accounts: Vec<Account>,
    /// HTTP client for all accounts.
    pub http: Http,
    /// The processes of the deployment; empty if this program did not start it.
    pub processes: Processes,
    /// The deployment, if this program started it.
    pub site: Option<Arc<Site>>,
    /// Size and pace of the load.
    pub load: Load,
    /// Start of the run's clock.
    pub epoch: Instant,
    /// Random hex string that identifies the run.
    pub tag: String,
    /// Collects the violations.
    pub verdict: Arc<Verdict>,
}

impl Stage {
    /// Creates a stage.
    ///
    /// # Errors
    /// If there is no address or no account.
    pub fn new(
        bases: Vec<String>,
        accounts: Vec<Account>,
        site: Option<Arc<Site>>,
        load: Load,
    ) -> Result<Self, String> {
        let http = Http::new(&bases, Duration::from_secs(15))?;
        if accounts.is_empty() {
            return Err(
                "no accounts: create some with `starling user create --count K --with-session`"
                    .to_owned(),
            );
        }

        let tag = format!("{:08x}", rand::random::<u32>());
        let verdict = Arc::default();
        let processes = site.as_ref().map(|site| site.processes()).unwrap_or_default();
        Ok(Self {
            bases,
            accounts,
            http,
            processes,
            site,
            load,
            epoch: Instant::now(),
            tag,
            verdict,
        })
    }

    /// The addresses of the replicas, without the balancer if this program started it.
    pub fn replicas(&self) -> Vec<String> {
        self.site.as_ref().map_or_else(|| self.bases.clone(), |site| site.replicas())
    }

    /// Whether clients connect to the servers without a balancer.
    pub fn is_direct(&self) -> bool {
        self.site.is_some() && self.bases == self.replicas()
    }

    /// Checks that there are at least this many accounts.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn need_accounts(&self, count: usize) -> Result<(), String> {
        let have = self.accounts.len();
        if have < count {
            Err(format!("{count} accounts are needed, but only {have} are given"))
        } else {
            Ok(())
        }
    }

    /// Sends a request, and retries it without an answer. Only for idempotent requests.
    ///
    /// # Errors
    /// If the request is refused, or no attempt is answered.
    pub async fn request<T: DeserializeOwned>(
        &self,
        replica: usize,
        user: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, String> {
        let token = &self.accounts[user].token;
        for attempt in 0..TRIES {
            match self.http.request(replica + attempt, token, method.clone(), path, body).await {
                Answer::Ok(value) => return Ok(value),
                Answer::Refused { status: 429, .. } => {
                    return Err(format!(
                        "{method} {path}: rate limited; start the server with \
                         STARLING_RATE_LIMITS=off"
                    ));
                }
                Answer::Refused { status, code } => {
                    return Err(format!("{method} {path}: {status} {code}"));
                }
                Answer::Unknown => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
        Err(format!("{method} {path}: no answer"))
    }

    /// Connects these users, spread over the replicas. `users` are account numbers; a repeated
    /// number is connected again.
    ///
    /// # Errors
    /// If a connection fails.
    pub async fn connect_all(
        &self,
        users: impl Iterator<Item = usize>,
    ) -> Result<Vec<Light>, String> {
        self.connect(users, false).await
    }

    /// The same, as slow consumers.
    ///
    /// # Errors
    /// If a connection fails.
    pub async fn connect_slow(
        &self,
        users: impl Iterator<Item = usize>,
    ) -> Result<Vec<Light>, String> {
        self.connect(users, true).await
    }

    async fn connect(
        &self,
        users: impl Iterator<Item = usize>,
        slow: bool,
    ) -> Result<Vec<Light>, String> {
        let connect = |(number, user): (usize, usize)| {
            let base = self.http.base(number);
            Light::connect(base, &self.accounts[user].token, slow, self.verdict.clone())
        };

        let connecting: Vec<_> = users.enumerate().map(connect).collect();
        let mut lights = Vec::with_capacity(connecting.len());
        let mut connected = stream::iter(connecting).buffered(HANDSHAKES_MAX);
        while let Some(light) = connected.next().await {
            lights.push(light?);
        }
        Ok(lights)
    }
}
