//! What every workload of a run is given.

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

/// Handshakes at once while a workload is set up.
const HANDSHAKES_MAX: usize = 32;
/// Tries of a request that nobody answered, a second apart.
const TRIES: usize = 5;

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// A rate.
    Higher,
    /// A latency, a size, a cost.
    Lower,
}

/// What a figure is held against: the name of a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FloorKind {
    /// Resident bytes of a connection of a bare WebSocket server.
    Connection,
    /// Connections a second that it takes.
    Connects,
    /// Frames a second that a bare server writes to all its connections.
    FanOut,
    /// How long half of those take at most.
    FanOutP50,
    /// How long 99 % of them take at most.
    FanOutP99,
    /// CPU of the bare server for each of them.
    FanOutCpu,
    /// Sends a second that a bare socket server makes durable, grouped into commits.
    GroupedSends,
    /// How long half of those take at most.
    GroupedP50,
    /// How long 99 % of them take at most.
    GroupedP99,
    /// CPU of the bare server for each of them.
    GroupedCpu,
    /// Pages a second that a bare client reads from the database.
    Reads,
    /// How long half of those take at most.
    ReadP50,
    /// How long 99 % of them take at most.
    ReadP99,
    /// How long half of the durable sends take at most, where there is only one at a time.
    LoneSendP50,
    /// How long 99 % of them take at most.
    LoneSendP99,
    /// How long half of the reads take at most, where there is only one at a time.
    LoneReadP50,
    /// How long 99 % of them take at most.
    LoneReadP99,
}

impl FloorKind {
    /// Whether it is the same in each run, as far as the machine is: the worst of a hundred is not.
    pub fn is_steady(self) -> bool {
        use FloorKind::{FanOutP99, GroupedP99, LoneReadP99, LoneSendP99, ReadP99};
        !matches!(self, FanOutP99 | GroupedP99 | ReadP99 | LoneSendP99 | LoneReadP99)
    }
}

/// One measured number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What it says, the same in every run.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// What it is held against.
    pub floor: Option<FloorKind>,
}

impl Figure {
    /// A figure where more is better.
    pub fn rate(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, better: Better::Higher, floor: None }
    }

    /// A figure where less is better.
    pub fn cost(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, better: Better::Lower, floor: None }
    }

    /// The same, held against a floor.
    #[must_use]
    pub fn over(self, floor: FloorKind) -> Self {
        Self { floor: Some(floor), ..self }
    }

    /// The same, held against a floor if it was measured as the floor is.
    #[must_use]
    pub fn over_if(self, alike: bool, floor: FloorKind) -> Self {
        if alike { self.over(floor) } else { self }
    }
}

/// A deployment, accounts on it, and how to load it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The addresses that clients know: a balancer's, or those of the replicas.
    pub bases: Vec<String>,
    /// Users with sessions.
    pub accounts: Vec<Account>,
    /// A client for all of them.
    pub http: Http,
    /// The processes behind the addresses, where they are of this machine and known.
    pub processes: Processes,
    /// The deployment, where it is this program's own.
    pub site: Option<Arc<Site>>,
    /// How to load it.
    pub load: Load,
    /// The run's clock begins here.
    pub epoch: Instant,
    /// A word that no other run has.
    pub tag: String,
    /// What is found wrong.
    pub verdict: Arc<Verdict>,
}

impl Stage {
    /// A stage.
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
                "no account: `starling user create --count K --with-session` makes some".to_owned()
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

    /// The addresses of the replicas, as far as they are known: to look at each of them, past any
    /// balancer.
    pub fn replicas(&self) -> Vec<String> {
        self.site.as_ref().map_or_else(|| self.bases.clone(), |site| site.replicas())
    }

    /// Whether nothing stands between clients and the servers.
    pub fn is_direct(&self) -> bool {
        self.site.is_some() && self.bases == self.replicas()
    }

    /// Fails if there are fewer accounts.
    ///
    /// # Errors
    /// In a sentence.
    pub fn need_accounts(&self, count: usize) -> Result<(), String> {
        let have = self.accounts.len();
        if have < count {
            Err(format!("{count} accounts are needed, and {have} given"))
        } else {
            Ok(())
        }
    }

    /// Sends a request, again if nobody answered. Only for requests that may be repeated.
    ///
    /// # Errors
    /// If it is refused, or never answered.
    pub async fn request<T: DeserializeOwned>(
        &self,
        replica: usize,
        user: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, String> {
        let token = &self.accounts[user].token;
        for turn in 0..TRIES {
            match self.http.request(replica + turn, token, method.clone(), path, body).await {
                Answer::Ok(value) => return Ok(value),
                Answer::Refused { status: 429, .. } => {
                    return Err(format!(
                        "{method} {path}: too many requests; start the server with STARLING_RATE_LIMITS=off"
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

    /// Connects these users (numbers of accounts, repeated for several connections), spread over
    /// the replicas.
    ///
    /// # Errors
    /// If one of them can't.
    pub async fn connect_all(
        &self,
        users: impl Iterator<Item = usize>,
    ) -> Result<Vec<Light>, String> {
        self.connect(users, false).await
    }

    /// The same, as clients that will read nothing for a while.
    ///
    /// # Errors
    /// If one of them can't.
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
