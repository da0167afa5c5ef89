//! Configuration: one list of keys. Flags take precedence over environment variables, and these
//! over a TOML file.

mod backends;
mod bounds;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;

use crate::cluster::redis::RedisAddress;
use crate::model::Limits;
use crate::model::limits::{CHATS_PER_USER_MAX, ConnectionTimeouts, PasswordCost};
use crate::store::StoreOptions;
use backends::Files;
use bounds::{at_least_1, seconds};

/// The value of a key that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// The key's function is active.
    On,
    /// The key's function is inactive.
    Off,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

macro_rules! keys {
    (
        with_default {$(
            $(#[doc = $doc:literal])+
            $key:ident: $type:ty, env $env:literal, default $default:literal;
        )+}
        optional {$(
            $(#[doc = $optional_doc:literal])+
            $optional:ident: $optional_type:ty, env $optional_env:literal, example $example:literal;
        )+}
    ) => {
        /// The value of each key, if it is given. Flags, environment, file and defaults are all
        /// read into this struct.
        #[derive(Clone, Debug, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $(
                $(#[doc = $doc])+
                #[arg(long, env = $env, global = true, hide_env_values = true)]
                pub $key: Option<$type>,
            )+
            $(
                $(#[doc = $optional_doc])+
                #[arg(long, env = $optional_env, global = true, hide_env_values = true)]
                pub $optional: Option<$optional_type>,
            )+
        }

        /// The value of each key after all layers.
        struct Values {
            $($key: $type,)+
            $($optional: Option<$optional_type>,)+
        }

        /// The defaults, as a file.
        const DEFAULTS: &str = concat!($(stringify!($key), " = ", $default, "\n"),+);

        impl Settings {
            /// Takes the keys that are absent here from `other`.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self {
                    $($key: self.$key.or(other.$key),)+
                    $($optional: self.$optional.or(other.$optional),)+
                }
            }

            /// The values, with the defaults for absent keys.
            fn values(self) -> Result<Values, String> {
                let defaults = toml::from_str(DEFAULTS).map_err(|error| error.to_string())?;
                let all = self.or(defaults);
                Ok(Values {
                    $($key: all.$key.ok_or(concat!(stringify!($key), " has no default"))?,)+
                    $($optional: all.$optional,)+
                })
            }
        }

        /// The name, environment variable, description, and default or example of each key, for
        /// [`Config::documented_file`].
        const KEYS: &[(&str, &str, &str, &str)] = &[
            $((stringify!($key), $env, concat!($($doc),+), $default),)+
            $((stringify!($optional), $optional_env, concat!($($optional_doc),+), $example),)+
        ];
    };
}

keys! {
    with_default {
        /// Public address of HTTP and WebSocket; port 0 takes a free port.
        listen: SocketAddr, env "STARLING_LISTEN", default "\"127.0.0.1:8080\"";
        /// Address of /metrics and the probes; must not be public.
        internal_listen: SocketAddr, env "STARLING_INTERNAL_LISTEN", default "\"127.0.0.1:9090\"";
        /// Directory of the SQLite file in embedded mode.
        data_dir: PathBuf, env "STARLING_DATA_DIR", default "\"./data\"";
        /// Connections to Postgres for requests. Sends, sessions and probes have up to 16 more.
        database_connections_max: u32, env "STARLING_DATABASE_CONNECTIONS_MAX", default "16";
        /// Prefix of all keys and channels in Redis. Separates deployments that share one Redis.
        redis_prefix: String, env "STARLING_REDIS_PREFIX", default "\"starling\"";
        /// off disables every rate limit, for load tests. Bounds on sizes and memory still apply.
        rate_limits: Switch, env "STARLING_RATE_LIMITS", default "\"on\"";
        /// Log filter, such as info or starling=debug.
        log: String, env "STARLING_LOG", default "\"info\"";
        /// Format of log lines: text or json.
        log_format: LogFormat, env "STARLING_LOG_FORMAT", default "\"text\"";
        /// Sessions of a user; a further login ends the oldest session.
        sessions_per_user_max: i64, env "STARLING_SESSIONS_PER_USER_MAX", default "10";
        /// Open invites of a user.
        invites_per_user_max: i64, env "STARLING_INVITES_PER_USER_MAX", default "20";
        /// Chats that a user created or joined, 1016 at most, so that all chats fit in one sync
        /// frame. Other users may add a user to 300 more.
        chats_per_user_max: i64, env "STARLING_CHATS_PER_USER_MAX", default "1000";
        /// Members of a group.
        group_members_max: i64, env "STARLING_GROUP_MEMBERS_MAX", default "20";
        /// Members of a channel up to which all members get each join and leave. In larger channels
        /// they get the number of members.
        channel_events_members_max: i64, env "STARLING_CHANNEL_EVENTS_MEMBERS_MAX", default "1000";
        /// Entries of a page, even if the client requests more.
        page_max: i64, env "STARLING_PAGE_MAX", default "100";
        /// WebSocket connections of a user.
        connections_per_user_max: usize, env "STARLING_CONNECTIONS_PER_USER_MAX", default "20";
        /// Connections of this process, HTTP and WebSocket.
        connections_max: usize, env "STARLING_CONNECTIONS_MAX", default "20000";
        /// Connections of one address whose clients have not authenticated. An IPv6 /64 counts as
        /// one address; a /56 has twice and a /48 four times as many. Behind trusted proxies, the
        /// unauthenticated requests and WebSocket connections of each client are counted instead.
        connections_per_address_max: usize, env "STARLING_CONNECTIONS_PER_ADDRESS_MAX",
            default "1000";
        /// Lifetime of an access token, in seconds.
        token_life_s: u64, env "STARLING_TOKEN_LIFE_S", default "86400";
        /// Lifetime of a refresh token, and so of a session that is not refreshed, in seconds.
        refresh_life_s: u64, env "STARLING_REFRESH_LIFE_S", default "2592000";
        /// How often clients must ping, in milliseconds. A connection that is silent for twice as
        /// long is closed.
        heartbeat_interval_ms: u64, env "STARLING_HEARTBEAT_INTERVAL_MS", default "30000";
        /// How long a user is still shown online after the last connection ended, in milliseconds.
        presence_linger_ms: u64, env "STARLING_PRESENCE_LINGER_MS", default "5000";
        /// Passwords that are hashed at the same time, each with 19 MiB of memory.
        hashes_at_once_max: usize, env "STARLING_HASHES_AT_ONCE_MAX", default "4";
    }
    optional {
        /// `postgres://user:password@host/database`; if absent, SQLite in the data directory. Must
        /// be Postgres itself and not a pooler such as PgBouncer: sessions keep settings and locks.
        database_url: String, env "DATABASE_URL",
            example "\"postgres://starling@localhost/starling\"";
        /// PEM file with the certificates of the authorities that sign Postgres's certificate, in
        /// addition to the public authorities. The certificate is then verified as with
        /// sslmode=verify-full, unless `database_url` contains sslmode=verify-ca.
        database_ca_file: PathBuf, env "STARLING_DATABASE_CA_FILE",
            example "\"/etc/starling/database-ca.pem\"";
        /// PEM file with the client certificate for Postgres, if Postgres requires one.
        database_cert_file: PathBuf, env "STARLING_DATABASE_CERT_FILE",
            example "\"/etc/starling/database-cert.pem\"";
        /// PEM file with the private key of that certificate.
        database_key_file: PathBuf, env "STARLING_DATABASE_KEY_FILE",
            example "\"/etc/starling/database-key.pem\"";
        /// `redis://host`, `redis+sentinel://host,host/master` or `redis+cluster://host,host`; if
        /// absent, there is one replica.
        redis_url: String, env "REDIS_URL", example "\"redis://localhost\"";
        /// PEM file with the certificates of the authorities that sign Redis's certificate, instead
        /// of the public authorities. Requires a `redis_url` that begins with rediss.
        redis_ca_file: PathBuf, env "STARLING_REDIS_CA_FILE",
            example "\"/etc/starling/redis-ca.pem\"";
        /// PEM file with the client certificate for Redis, if Redis requires one.
        redis_cert_file: PathBuf, env "STARLING_REDIS_CERT_FILE",
            example "\"/etc/starling/redis-cert.pem\"";
        /// PEM file with the private key of that certificate.
        redis_key_file: PathBuf, env "STARLING_REDIS_KEY_FILE",
            example "\"/etc/starling/redis-key.pem\"";
        /// URL at which users reach the server, for join links; if absent, the listen address.
        public_url: String, env "STARLING_PUBLIC_URL", example "\"https://chat.example.org\"";
        /// Origins of other web pages that may open a WebSocket, comma-separated; * allows all.
        allowed_origins: String, env "STARLING_ALLOWED_ORIGINS",
            example "\"https://app.example.org\"";
        /// Networks of proxies whose X-Forwarded-For header is trusted, comma-separated.
        trusted_proxies: String, env "STARLING_TRUSTED_PROXIES", example "\"10.0.0.0/8\"";
        /// How long a stopping replica serves while it reports unready, so that the load balancer
        /// notices, in milliseconds. Without Redis the default is 0.
        unready_ms: u64, env "STARLING_UNREADY_MS", example "5000";
        /// Over how long a stopping replica closes its WebSocket connections, in milliseconds.
        /// Without Redis the default is 2000.
        drain_ms: u64, env "STARLING_DRAIN_MS", example "15000";
    }
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// The public address.
    pub listen: SocketAddr,
    /// The address of metrics and probes.
    pub internal_listen: SocketAddr,
    /// The database.
    pub store: StoreOptions,
    /// The Redis that the replicas share, and the prefix of keys; `None` if there is one replica.
    pub redis: Option<(RedisAddress, String)>,
    /// The URL for users, without a slash at the end; `None` for the listen address.
    pub public_url: Option<String>,
    /// Origins of other web pages that may open a WebSocket.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The bounds that an operator can change.
    pub limits: Limits,
    /// The log filter.
    pub log: String,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// How long a stopping replica reports unready before it drains.
    pub unready: Duration,
    /// Over how long a stopping replica drains its connections.
    pub drain: Duration,
    /// Passwords that are hashed at the same time.
    pub hashes_at_once_max: usize,
    /// The timeouts of the listeners. No key; tests shorten them.
    pub patience: ConnectionTimeouts,
    /// The cost of a password hash. No key; tests lower it.
    pub password_cost: PasswordCost,
}

impl Config {
    /// Makes the configuration from the flags and environment (`given`) and the file, if one is
    /// named.
    ///
    /// # Errors
    /// A sentence that names the key and how to correct it.
    pub fn resolve(given: Settings, file: Option<&Path>) -> Result<Self, String> {
        let settings = match file {
            Some(path) => given.or(read_file(path)?),
            None => given,
        };
        settings.values()?.check()
    }

    /// Warnings about settings that are allowed but often wrong.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if !self.limits.rate_limits {
            warnings.push("rate limits are off: use this only for load tests on your own machine");
        }
        if !self.internal_listen.ip().is_loopback() && self.internal_listen.ip() == self.listen.ip()
        {
            warnings.push(
                "internal_listen has the public address: close its port in the firewall, \
                 or listen on a private address",
            );
        }
        if self.allowed_origins.iter().any(|origin| origin == "*") {
            warnings.push(
                "allowed_origins is *, so web pages of any origin may open a WebSocket: \
                 name the origins unless this is intended",
            );
        }
        if self.store.is_exposed() {
            warnings.push(
                "Postgres is on another machine, and its certificate is not verified: an attacker \
                 on the network can read and change everything; add sslmode=verify-full to \
                 DATABASE_URL, and set database_ca_file if the authority is your own",
            );
        }
        if self.redis.as_ref().is_some_and(|(address, _)| address.is_exposed()) {
            warnings.push(
                "Redis is on another machine without TLS, or its certificate is not verified: an \
                 attacker on the network can read every event; let REDIS_URL begin with rediss://, \
                 and set redis_ca_file if the authority is your own",
            );
        }
        warnings
    }

    /// A TOML file of all keys with their descriptions and defaults, each commented out.
    pub fn documented_file() -> String {
        let mut file = String::from(
            "# Starling. Every key can also be a flag (--data-dir) or an environment variable.\n",
        );

        for (key, env, doc, example) in KEYS {
            let _ = write!(file, "\n#{doc}\n# {env}\n#{key} = {example}\n");
        }
        file
    }
}

impl Values {
    fn check(self) -> Result<Config, String> {
        if self.redis_url.is_some() && self.database_url.is_none() {
            return Err("REDIS_URL is set, but replicas can't share an SQLite file: \
                        set DATABASE_URL as well, or unset REDIS_URL"
                .to_owned());
        }
        let limits = self.limits()?;

        let redis = backends::redis(
            self.redis_url,
            self.redis_ca_file,
            self.redis_cert_file,
            self.redis_key_file,
        )?;
        let is_cluster = redis.is_some();
        let prefix = redis_prefix(self.redis_prefix)?;

        let files = Files {
            of: "database",
            ca: self.database_ca_file,
            cert: self.database_cert_file,
            key: self.database_key_file,
        };
        let store = backends::store(
            self.database_url,
            self.database_connections_max,
            self.data_dir,
            files,
        )?;

        // Several replicas stop slowly: the load balancer must notice that this replica is unready,
        // and the other replicas must accept its clients.
        let (unready_ms, drain_ms) = if is_cluster { (5000, 15_000) } else { (0, 2000) };
        Ok(Config {
            listen: self.listen,
            internal_listen: self.internal_listen,
            store,
            redis: redis.map(|address| (address, prefix)),
            public_url: public_url(self.public_url)?,
            allowed_origins: list(self.allowed_origins.as_deref()),
            trusted_proxies: networks(self.trusted_proxies.as_deref())?,
            limits,
            log: self.log,
            log_format: self.log_format,
            unready: Duration::from_millis(self.unready_ms.unwrap_or(unready_ms)),
            drain: Duration::from_millis(self.drain_ms.unwrap_or(drain_ms)),
            hashes_at_once_max: at_least_1("hashes_at_once_max", self.hashes_at_once_max)?,
            patience: ConnectionTimeouts::default(),
            password_cost: PasswordCost::default(),
        })
    }

    fn limits(&self) -> Result<Limits, String> {
        if self.chats_per_user_max > CHATS_PER_USER_MAX {
            let reason = "all chats of a user must fit in one sync frame";
            return Err(format!(
                "chats_per_user_max must be at most {CHATS_PER_USER_MAX}: {reason}"
            ));
        }
        /// `field: at_least_1("field", self.field)?` for each field.
        macro_rules! limits {
            ($($field:ident),+; $($rest:tt)+) => {
                Limits { $($field: at_least_1(stringify!($field), self.$field)?,)+ $($rest)+ }
            };
        }
        let limits = limits! {
            sessions_per_user_max, invites_per_user_max, chats_per_user_max, group_members_max,
            channel_events_members_max, page_max, connections_per_user_max, connections_max,
            connections_per_address_max;
            token_life: seconds("token_life_s", self.token_life_s)?,
            refresh_life: seconds("refresh_life_s", self.refresh_life_s)?,
            heartbeat_interval: Duration::from_millis(at_least_1(
                "heartbeat_interval_ms",
                self.heartbeat_interval_ms,
            )?),
            presence_linger: Duration::from_millis(self.presence_linger_ms),
            rate_limits: self.rate_limits == Switch::On,
        };

        if limits.refresh_life < limits.token_life {
            return Err("refresh_life_s must not be shorter than token_life_s: \
                        a session lives as long as its refresh token"
                .to_owned());
        }
        Ok(limits)
    }
}

fn redis_prefix(prefix: String) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);

    if prefix.is_empty() || !prefix.bytes().all(is_allowed) {
        return Err("redis_prefix must consist of letters, digits, - _ and .".to_owned());
    }
    Ok(prefix)
}

fn public_url(given: Option<String>) -> Result<Option<String>, String> {
    let url = given.map(|url| url.trim_end_matches('/').to_owned());
    let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");

    if url.as_ref().is_some_and(|url| !is_http(url)) {
        return Err("STARLING_PUBLIC_URL must begin with https:// or http://".to_owned());
    }
    Ok(url)
}

fn read_file(path: &Path) -> Result<Settings, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("can't read {}: {error}", path.display()))?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        // The error names the key but not its value, which may be a secret.
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = text.lines().nth(before.matches('\n').count()).unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        let number = before.matches('\n').count() + 1;

        format!("{}, line {number}, {key}: {}", path.display(), error.message().replace('\n', " "))
    })
}

fn list(words: Option<&str>) -> Vec<String> {
    let words = words.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn networks(words: Option<&str>) -> Result<Vec<IpNet>, String> {
    let parse = |word: &String| {
        let net =
            word.parse::<IpNet>().or_else(|_| word.parse::<std::net::IpAddr>().map(IpNet::from));
        net.map_err(|_| {
            format!(
                "trusted_proxies: {word:?} is neither a network such as 10.0.0.0/8 nor an address"
            )
        })
    };

    list(words).iter().map(parse).collect()
}

#[cfg(test)]
mod tests;
