//! Configuration: one list of keys, read from flags, the environment and a TOML file, in that order
//! of precedence.

mod backends;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;

use crate::cluster::redis::RedisAddress;
use crate::model::Limits;
use crate::model::limits::{CHATS_PER_USER_MAX, PasswordCost, Patience};
use crate::store::StoreOptions;
use backends::Files;

/// A switch, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It applies.
    On,
    /// It doesn't.
    Off,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $key:ident: $type:ty, env $env:literal, example $example:literal;)+) => {
        /// Every key, as far as it was given. The same struct is read from flags, environment and
        /// file.
        #[derive(Clone, Debug, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $($(#[doc = $doc])+ #[arg(long, env = $env, global = true, hide_env_values = true)] pub $key: Option<$type>,)+
        }

        impl Settings {
            /// What is given here, else there.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { $($key: self.$key.or(other.$key),)+ }
            }
        }

        /// Key, environment variable, description and example value of each, for the documented
        /// default file.
        const KEYS: &[(&str, &str, &str, &str)] = &[$((stringify!($key), $env, concat!($($doc),+), $example)),+];
    };
}

keys! {
    /// Public HTTP and WebSocket address; port 0 takes a free one.
    listen: SocketAddr, env "STARLING_LISTEN", example "\"127.0.0.1:8080\"";
    /// Address of /metrics and the probes; not for the public.
    internal_listen: SocketAddr, env "STARLING_INTERNAL_LISTEN", example "\"127.0.0.1:9090\"";
    /// Where the SQLite file lives in embedded mode.
    data_dir: PathBuf, env "STARLING_DATA_DIR", example "\"./data\"";
    /// `postgres://user:password@host/database`; absent: SQLite in the data directory. Postgres
    /// itself, not a pooler such as PgBouncer: sessions keep settings and locks.
    database_url: String, env "DATABASE_URL", example "\"postgres://starling@localhost/starling\"";
    /// Connections to Postgres for requests; sends, sessions and probes have up to 16 of their own
    /// besides.
    database_connections_max: u32, env "STARLING_DATABASE_CONNECTIONS_MAX", example "16";
    /// Certificates in PEM format of the authorities that sign Postgres's certificate, besides the
    /// public ones. The connection is then verified as by sslmode=verify-full, unless
    /// `database_url` says verify-ca.
    database_ca_file: PathBuf, env "STARLING_DATABASE_CA_FILE", example "\"/etc/starling/database-ca.pem\"";
    /// The server's own certificate in PEM format, where Postgres asks for one.
    database_cert_file: PathBuf, env "STARLING_DATABASE_CERT_FILE", example "\"/etc/starling/database-cert.pem\"";
    /// The key of that certificate, in PEM format.
    database_key_file: PathBuf, env "STARLING_DATABASE_KEY_FILE", example "\"/etc/starling/database-key.pem\"";
    /// `redis://host`, `redis+sentinel://host,host/master` or `redis+cluster://host,host`; absent:
    /// one replica.
    redis_url: String, env "REDIS_URL", example "\"redis://localhost\"";
    /// Certificates in PEM format of the authorities that sign Redis's certificate, instead of the
    /// public ones; with rediss:// alone.
    redis_ca_file: PathBuf, env "STARLING_REDIS_CA_FILE", example "\"/etc/starling/redis-ca.pem\"";
    /// The server's own certificate in PEM format, where Redis asks for one.
    redis_cert_file: PathBuf, env "STARLING_REDIS_CERT_FILE", example "\"/etc/starling/redis-cert.pem\"";
    /// The key of that certificate, in PEM format.
    redis_key_file: PathBuf, env "STARLING_REDIS_KEY_FILE", example "\"/etc/starling/redis-key.pem\"";
    /// What all keys and channels in Redis begin with; tells communities on one Redis apart.
    redis_prefix: String, env "STARLING_REDIS_PREFIX", example "\"starling\"";
    /// How people reach the server; used in join links. Absent: the listen address.
    public_url: String, env "STARLING_PUBLIC_URL", example "\"https://chat.example.org\"";
    /// Origins of other web pages that may open a WebSocket, comma-separated; * for all.
    allowed_origins: String, env "STARLING_ALLOWED_ORIGINS", example "\"https://app.example.org\"";
    /// Networks of proxies whose X-Forwarded-For is believed, comma-separated.
    trusted_proxies: String, env "STARLING_TRUSTED_PROXIES", example "\"10.0.0.0/8\"";
    /// off lifts every rate limit, for load tests; bounds on size and memory stay.
    rate_limits: Switch, env "STARLING_RATE_LIMITS", example "\"on\"";
    /// Log filter, such as info or starling=debug.
    log: String, env "STARLING_LOG", example "\"info\"";
    /// How logs are written: text or json.
    log_format: LogFormat, env "STARLING_LOG_FORMAT", example "\"text\"";
    /// Sessions of a user; one more ends the oldest.
    sessions_per_user_max: i64, env "STARLING_SESSIONS_PER_USER_MAX", example "10";
    /// Open invites of a user.
    invites_per_user_max: i64, env "STARLING_INVITES_PER_USER_MAX", example "20";
    /// Chats of a user by their own act, 1016 at most, so that all fit in one sync; others may
    /// bring a user into 300 more.
    chats_per_user_max: i64, env "STARLING_CHATS_PER_USER_MAX", example "1000";
    /// Members of a group.
    group_members_max: i64, env "STARLING_GROUP_MEMBERS_MAX", example "20";
    /// Members of a channel up to which all members get each join and leave; above, they get the
    /// number of members.
    channel_events_members_max: i64, env "STARLING_CHANNEL_EVENTS_MEMBERS_MAX", example "1000";
    /// Entries of a page, whatever the client asks for.
    page_max: i64, env "STARLING_PAGE_MAX", example "100";
    /// WebSocket connections of a user.
    connections_per_user_max: usize, env "STARLING_CONNECTIONS_PER_USER_MAX", example "20";
    /// Connections of this process, HTTP and WebSocket.
    connections_max: usize, env "STARLING_CONNECTIONS_MAX", example "20000";
    /// Connections of one address that have not logged in yet; of IPv6 a /64 is one address, a /56
    /// has twice and a /48 four times as many. Behind trusted proxies: requests and sockets without
    /// a login, by client.
    connections_per_address_max: usize, env "STARLING_CONNECTIONS_PER_ADDRESS_MAX", example "1000";
    /// Life of an access token, in seconds.
    token_life_s: u64, env "STARLING_TOKEN_LIFE_S", example "86400";
    /// Life of a refresh token, and so of a session that nobody uses, in seconds.
    refresh_life_s: u64, env "STARLING_REFRESH_LIFE_S", example "2592000";
    /// How often clients are told to ping, in milliseconds; silent for twice as long, they are
    /// closed.
    heartbeat_interval_ms: u64, env "STARLING_HEARTBEAT_INTERVAL_MS", example "30000";
    /// How long a user whose last connection ended is still shown online, in milliseconds.
    presence_linger_ms: u64, env "STARLING_PRESENCE_LINGER_MS", example "5000";
    /// How long a stopping process goes on as unready, so that a load balancer notices, in
    /// milliseconds; alone 0.
    unready_ms: u64, env "STARLING_UNREADY_MS", example "5000";
    /// How long a stopping process takes to send its clients away, in milliseconds; alone 2000.
    drain_ms: u64, env "STARLING_DRAIN_MS", example "15000";
    /// Passwords hashed at once, 19 MiB each.
    hashes_at_once_max: usize, env "STARLING_HASHES_AT_ONCE_MAX", example "4";
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// Public address.
    pub listen: SocketAddr,
    /// Address of metrics and probes.
    pub internal_listen: SocketAddr,
    /// Which database.
    pub store: StoreOptions,
    /// Which Redis the replicas share, and under which prefix; `None`: there is one replica.
    pub redis: Option<(RedisAddress, String)>,
    /// How people reach the server, without a slash at the end; `None`: the listen address.
    pub public_url: Option<String>,
    /// Origins of other web pages.
    pub allowed_origins: Vec<String>,
    /// Proxies to believe.
    pub trusted_proxies: Vec<IpNet>,
    /// The bounds.
    pub limits: Limits,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Time to be unready before clients are sent away.
    pub unready: Duration,
    /// Time to send clients away.
    pub drain: Duration,
    /// Passwords hashed at once.
    pub hashes_at_once_max: usize,
    /// How patient the listeners are: no key, but tests are not.
    pub patience: Patience,
    /// What a password hash costs.
    pub password_cost: PasswordCost,
}

impl Config {
    /// Settles the configuration from flags and environment (`given`) and the file, if one is
    /// named.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn resolve(given: Settings, file: Option<&Path>) -> Result<Self, String> {
        let settings = match file {
            Some(path) => given.or(read_file(path)?),
            None => given,
        };
        settings.check()
    }

    /// What is allowed but deserves a second look.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if !self.limits.rate_limits {
            warnings.push("rate limits are off: this is for load tests on a machine of your own");
        }
        if !self.internal_listen.ip().is_loopback() && self.internal_listen.ip() == self.listen.ip()
        {
            warnings.push("metrics listen on the public address: keep that port behind a firewall");
        }
        if self.allowed_origins.iter().any(|origin| origin == "*") {
            warnings.push("web pages of any origin may connect");
        }
        if self.store.is_exposed() {
            warnings.push(
                "Postgres is on another machine, and its certificate is not verified: anyone in between can read and \
                 change everything; add sslmode=verify-full to DATABASE_URL, and set database_ca_file if its authority is \
                 your own",
            );
        }
        if self.redis.as_ref().is_some_and(|(address, _)| address.is_exposed()) {
            warnings.push(
                "Redis is on another machine without TLS, or its certificate is not verified: anyone in between can \
                 read every event; let REDIS_URL begin with rediss://, and set redis_ca_file if its authority is \
                 your own",
            );
        }
        warnings
    }

    /// Every key with its description and default, as a TOML file to start from.
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

impl Settings {
    fn check(self) -> Result<Config, String> {
        let defaults = Limits::default();
        if self.redis_url.is_some() && self.database_url.is_none() {
            return Err(
                "REDIS_URL is set, but replicas can't share an SQLite file: set DATABASE_URL as well, or unset REDIS_URL"
                    .to_owned(),
            );
        }
        let redis = backends::redis(
            self.redis_url,
            self.redis_ca_file,
            self.redis_cert_file,
            self.redis_key_file,
        )?;
        let fleet = redis.is_some();
        let redis_prefix = self.redis_prefix.unwrap_or_else(|| "starling".to_owned());
        if redis_prefix.is_empty()
            || !redis_prefix
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err("redis_prefix must be made of letters, digits, - _ and .".to_owned());
        }
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
        let public_url = self.public_url.map(|url| url.trim_end_matches('/').to_owned());
        if public_url
            .as_ref()
            .is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return Err("STARLING_PUBLIC_URL must begin with https:// or http://".to_owned());
        }
        let limits = Limits {
            sessions_per_user_max: at_least_1(
                "sessions_per_user_max",
                self.sessions_per_user_max.unwrap_or(defaults.sessions_per_user_max),
            )?,
            invites_per_user_max: at_least_1(
                "invites_per_user_max",
                self.invites_per_user_max.unwrap_or(defaults.invites_per_user_max),
            )?,
            chats_per_user_max: chats_per_user_max(
                self.chats_per_user_max.unwrap_or(defaults.chats_per_user_max),
            )?,
            group_members_max: at_least_1(
                "group_members_max",
                self.group_members_max.unwrap_or(defaults.group_members_max),
            )?,
            channel_events_members_max: at_least_1(
                "channel_events_members_max",
                self.channel_events_members_max.unwrap_or(defaults.channel_events_members_max),
            )?,
            page_max: at_least_1("page_max", self.page_max.unwrap_or(defaults.page_max))?,
            connections_per_user_max: at_least_1(
                "connections_per_user_max",
                self.connections_per_user_max.unwrap_or(defaults.connections_per_user_max),
            )?,
            connections_max: at_least_1(
                "connections_max",
                self.connections_max.unwrap_or(defaults.connections_max),
            )?,
            connections_per_address_max: at_least_1(
                "connections_per_address_max",
                self.connections_per_address_max.unwrap_or(defaults.connections_per_address_max),
            )?,
            token_life: seconds("token_life_s", self.token_life_s, defaults.token_life)?,
            refresh_life: seconds("refresh_life_s", self.refresh_life_s, defaults.refresh_life)?,
            heartbeat_interval: match self.heartbeat_interval_ms {
                Some(ms) => Duration::from_millis(at_least_1("heartbeat_interval_ms", ms)?),
                None => defaults.heartbeat_interval,
            },
            presence_linger: self
                .presence_linger_ms
                .map_or(defaults.presence_linger, Duration::from_millis),
            rate_limits: self.rate_limits != Some(Switch::Off),
        };
        if limits.refresh_life < limits.token_life {
            return Err(
                "refresh_life_s must not be shorter than token_life_s: a session lives as long as its refresh token"
                    .to_owned(),
            );
        }
        Ok(Config {
            listen: self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            internal_listen: self
                .internal_listen
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9090))),
            store,
            redis: redis.map(|address| (address, redis_prefix)),
            public_url,
            allowed_origins: list(self.allowed_origins.as_deref()),
            trusted_proxies: networks(self.trusted_proxies.as_deref())?,
            limits,
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or(LogFormat::Text),
            // Of many sockets a tenth a second at most: the other replicas have to take them.
            unready: Duration::from_millis(self.unready_ms.unwrap_or(if fleet { 5000 } else { 0 })),
            drain: Duration::from_millis(self.drain_ms.unwrap_or(if fleet {
                15_000
            } else {
                2000
            })),
            hashes_at_once_max: at_least_1(
                "hashes_at_once_max",
                self.hashes_at_once_max.unwrap_or(4),
            )?,
            patience: Patience::default(),
            password_cost: PasswordCost::default(),
        })
    }
}

fn read_file(path: &Path) -> Result<Settings, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("can't read {}: {error}", path.display()))?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        // One sentence, with the key but without its value, which may be a secret.
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = text.lines().nth(before.matches('\n').count()).unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        let number = before.matches('\n').count() + 1;
        format!("{}, line {number}, {key}: {}", path.display(), error.message().replace('\n', " "))
    })
}

fn at_least_1<T: PartialOrd + From<u8>>(key: &str, value: T) -> Result<T, String> {
    if value < T::from(1) { Err(format!("{key} must be at least 1")) } else { Ok(value) }
}

fn chats_per_user_max(value: i64) -> Result<i64, String> {
    if value > CHATS_PER_USER_MAX {
        let reason = "a user with more could not name all of their chats in one sync";
        return Err(format!("chats_per_user_max must be at most {CHATS_PER_USER_MAX}: {reason}"));
    }
    at_least_1("chats_per_user_max", value)
}

fn seconds(key: &str, given: Option<u64>, default: Duration) -> Result<Duration, String> {
    /// A century: longer lives are a slip of the finger, and would not fit the arithmetic of time.
    const MAX: u64 = 100 * 365 * 24 * 3600;
    match given {
        Some(s) if s > MAX => Err(format!("{key} must be at most {MAX}")),
        Some(s) => Ok(Duration::from_secs(at_least_1(key, s)?)),
        None => Ok(default),
    }
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
mod tests {
    use super::*;

    fn resolve(settings: Settings) -> Result<Config, String> {
        Config::resolve(settings, None)
    }

    #[test]
    fn nothing_given_is_embedded_mode_on_loopback() {
        let config = resolve(Settings::default()).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert!(matches!(config.store, StoreOptions::Sqlite { .. }));
        assert!(config.limits.rate_limits);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence_that_names_the_key() {
        let wrong = |settings, word: &str| {
            let sentence = resolve(settings).unwrap_err();
            assert!(sentence.contains(word), "{sentence}");
        };
        wrong(
            Settings { database_url: Some("mysql://x".into()), ..Settings::default() },
            "DATABASE_URL",
        );
        wrong(Settings { redis_url: Some("redis://x".into()), ..Settings::default() }, "REDIS_URL");
        wrong(
            Settings { public_url: Some("chat.example.org".into()), ..Settings::default() },
            "STARLING_PUBLIC_URL",
        );
        let too_many =
            Settings { chats_per_user_max: Some(CHATS_PER_USER_MAX + 1), ..Settings::default() };
        wrong(too_many, "chats_per_user_max must be at most 1016");
        wrong(Settings { page_max: Some(0), ..Settings::default() }, "page_max");
        wrong(Settings { token_life_s: Some(u64::MAX), ..Settings::default() }, "token_life_s");
        wrong(
            Settings { trusted_proxies: Some("nonsense".into()), ..Settings::default() },
            "trusted_proxies",
        );
    }

    #[test]
    fn a_database_or_redis_on_another_machine_without_verified_tls_is_warned_of() {
        let warnings = |database: &str, redis: Option<&str>| {
            let settings = Settings {
                database_url: Some(database.to_owned()),
                redis_url: redis.map(str::to_owned),
                ..Settings::default()
            };
            let said = resolve(settings).unwrap().warnings();
            ["Postgres", "Redis"].map(|name| said.iter().any(|warning| warning.starts_with(name)))
        };
        for (url, warned) in [
            ("postgres://a@localhost/b", false),
            ("postgres://a@127.0.0.1/b", false),
            ("postgres://a@%2Frun%2Fpostgresql/b", false),
            ("postgres://a@db.example.org/b", true),
            ("postgres://a@db.example.org/b?sslmode=require", true),
            ("postgres://a@db.example.org/b?sslmode=verify-ca", false),
            ("postgres://a@db.example.org/b?sslmode=verify-full", false),
        ] {
            assert_eq!(warnings(url, None), [warned, false], "{url}");
        }
        for (url, warned) in [
            ("redis://localhost", false),
            ("redis://10.0.0.1", true),
            ("rediss://10.0.0.1", false),
            ("rediss://10.0.0.1/#insecure", true),
            ("redis+sentinel://localhost,s2.example.org/main", true),
            ("rediss+sentinel://s1.example.org/main", false),
            ("redis+cluster://n1.example.org", true),
            ("rediss+cluster://n1.example.org", false),
        ] {
            assert_eq!(warnings("postgres://a@localhost/b", Some(url)), [false, warned], "{url}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Settings { page_max: Some(7), ..Settings::default() };
        let file: Settings = toml::from_str("page_max = 9\ngroup_members_max = 30").unwrap();
        let config = resolve(flags.or(file)).unwrap();
        assert_eq!((config.limits.page_max, config.limits.group_members_max), (7, 30));
    }

    #[test]
    fn every_key_of_the_documented_file_is_read_with_its_type() {
        let documented = Config::documented_file();
        let keys = documented.lines().filter_map(|line| {
            line.strip_prefix('#').filter(|line| !line.starts_with(' ') && line.contains(" = "))
        });
        let file = keys.collect::<Vec<_>>().join("\n");
        let settings: Settings = toml::from_str(&file).unwrap();
        assert_eq!(file.lines().count(), KEYS.len());
        assert_eq!(settings.page_max, Some(Limits::default().page_max));
        assert_eq!(settings.chats_per_user_max, Some(Limits::default().chats_per_user_max));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        assert!(
            toml::from_str::<Settings>("colour = 1").unwrap_err().to_string().contains("colour")
        );
    }
}
