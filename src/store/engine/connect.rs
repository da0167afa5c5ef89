//! Opening the database, with the settings that durability and timeouts depend on.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::pool::{AGE_MAX, Pool, STATEMENT_MAX, Trust, connect_to_primary};
use super::{Db, SessionDb, Store, failure};
use crate::model::address::is_loopback;
use crate::model::certificates::{Certificates, PemFile};
use crate::model::limits::{
    APPEND_LOCK_MAX, APPENDERS, LANES_AT_ONCE_MAX, SESSION_CONNECTIONS_MAX,
};
use crate::model::{Code, Error, Result};

/// The settings of each session. A replica that vanishes leaves its session behind, with its locks.
/// So Postgres ends a session that paused within a transaction for longer than any unit of work
/// takes, and a session whose peer answers no TCP probe for about 15 s. (Over a Unix socket the TCP
/// settings have no effect.)
const SESSION: [(&str, &str); 5] = [
    ("idle_in_transaction_session_timeout", "4s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10s"),
];
/// Connections that only readiness and the check of the log's epoch use.
const PROBES_MAX: u32 = 2;
/// Age at which a connection for probes is replaced. If the address names another server now, the
/// replica notices within this time, even while the old server still answers. Opening a connection
/// costs a few milliseconds.
const PROBE_AGE_MAX: Duration = Duration::from_secs(10);
/// Connections that only sends use: one for each appender, and one for each lane that waits for a
/// locked chat.
#[expect(clippy::cast_possible_truncation, reason = "ten")]
const APPENDER_CONNECTIONS: u32 = (APPENDERS + LANES_AT_ONCE_MAX) as u32;
/// How long the database may take to answer at the start of the process.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long SQLite waits for a lock of another process, such as `starling invite`.
const BUSY_MAX: Duration = Duration::from_secs(3);
/// Pause between two tries in the cases in which SQLite does not wait by itself.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// Connections that read an SQLite file at the same time.
const SQLITE_READERS: u32 = 4;
/// Connections that read only sessions from an SQLite file, so that no other read delays a login.
const SQLITE_SESSION_READERS: u32 = 1;
/// The oldest SQLite release accepted: in older ones, a crash at the wrong moment can corrupt the
/// write-ahead log.
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);

/// The database to open.
#[derive(Clone, Debug)]
pub enum StoreOptions {
    /// A Postgres server.
    Postgres {
        /// The `postgres://…` address with user and password.
        url: String,
        /// The maximum number of connections for requests. Sessions, probes and appenders have
        /// pools of their own.
        connections_max: u32,
    },
    /// The file `starling.db` in a directory, created if it does not exist.
    Sqlite {
        /// The data directory.
        dir: PathBuf,
    },
}

impl StoreOptions {
    /// Postgres at this address, with these certificates. Their files are read again for each
    /// connection.
    ///
    /// # Errors
    /// Why the address is invalid or contradicts the certificates.
    pub fn postgres(
        mut url: String,
        connections_max: u32,
        certificates: Option<&Certificates>,
    ) -> Result<Self, String> {
        let options = PgConnectOptions::from_str(&url).map_err(|error| error.to_string())?;
        if let Some(certificates) = certificates {
            // The driver's `require` does not verify the server's certificate, even if it is given
            // an authority.
            let mode = match options.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => {
                    let conflict = "its sslmode disables TLS, but certificate files are set: \
                                    set sslmode=verify-full, or unset the files";
                    return Err(conflict.to_owned());
                }
                PgSslMode::Prefer | PgSslMode::Require | PgSslMode::VerifyFull => "verify-full",
                PgSslMode::VerifyCa => "verify-ca",
            };

            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("sslmode", mode);
            let path = |file: &PemFile| file.path.display().to_string();

            if let Some(authority) = &certificates.authority {
                query.append_pair("sslrootcert", &path(authority));
            }
            if let Some((cert, key)) = &certificates.client {
                query.append_pair("sslcert", &path(cert)).append_pair("sslkey", &path(key));
            }

            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&query.finish());
        }
        Ok(Self::Postgres { url, connections_max })
    }

    /// Whether traffic to the database crosses a network without a verified certificate.
    pub fn is_exposed(&self) -> bool {
        let Self::Postgres { url, .. } = self else { return false };
        PgConnectOptions::from_str(url).is_ok_and(|options| {
            let verified =
                matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
            let is_local = options.get_socket().is_some() || is_loopback(options.get_host());
            !is_local && !verified
        })
    }
}

impl Store {
    /// Opens the database. Does not touch the schema.
    ///
    /// # Errors
    /// `unavailable` if the database does not answer, `internal` if it can't be used.
    pub async fn open(options: &StoreOptions) -> Result<Self> {
        let (reader, writer, sessions, probe, appenders) = match options {
            StoreOptions::Postgres { url, connections_max } => {
                let options = postgres(url).await?;
                let trust = Trust::default();

                let with = |name, options: &PgConnectOptions, connections_max, age_max| {
                    let trust = trust.clone();
                    Db::Postgres(Pool::new(name, options.clone(), connections_max, age_max, trust))
                };
                let requests = with("requests", &options, *connections_max, AGE_MAX);
                let sessions = with("sessions", &options, SESSION_CONNECTIONS_MAX, AGE_MAX);
                let sessions = SessionDb { reader: sessions.clone(), writer: sessions };

                let probing = options.clone().application_name("starling-probe");
                let probe = with("probes", &probing, PROBES_MAX, PROBE_AGE_MAX);

                let impatient = options
                    .options([("lock_timeout", format!("{}ms", APPEND_LOCK_MAX.as_millis()))]);
                let appenders = with("appenders", &impatient, APPENDER_CONNECTIONS, AGE_MAX);
                (requests.clone(), requests, sessions, probe, appenders)
            }
            StoreOptions::Sqlite { dir } => {
                let Sqlite { reader, session_reader, writer } = sqlite(dir).await?;
                let sessions = SessionDb { reader: session_reader, writer: writer.clone() };
                (reader.clone(), writer.clone(), sessions, reader, writer)
            }
        };
        Ok(Self {
            reader,
            writer,
            sessions,
            probe,
            appenders,
            statements: Arc::default(),
            log: Arc::default(),
        })
    }

    /// Opens the connections of the appenders, so that the first send does not wait for one. A
    /// failure is ignored here; the first send reports it.
    pub async fn warm_up(&self) {
        if let Db::Postgres(pool) = &self.appenders {
            pool.warm_up(APPENDERS).await;
        }
    }
}

/// Parses the address, and connects once to check it.
async fn postgres(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .map_err(failure)?
        .application_name("starling")
        .options([("statement_timeout", format!("{}ms", STATEMENT_MAX.as_millis()))])
        .options(SESSION);

    let address = format!("{}:{}", options.get_host(), options.get_port());
    let away = |error: &dyn std::fmt::Display, advice: &str| {
        Error::unavailable(io::Error::other(format!(
            "can't use Postgres at {address}: {error}; {advice}"
        )))
    };
    match tokio::time::timeout(CONNECT_MAX, connect_to_primary(&options)).await {
        Err(elapsed) => Err(away(&elapsed, "check DATABASE_URL")),
        Ok(Err(error)) if error.to_string().contains("unsupported startup parameter") => {
            Err(away(&error, POOLER))
        }
        Ok(Err(error)) => Err(away(&error, "check DATABASE_URL")),
        Ok(Ok(connection)) => connection.close().await.map_err(failure).map(|()| options),
    }
}

/// The advice if a pooler such as PgBouncer is between the replica and Postgres.
const POOLER: &str = "a pooler such as PgBouncer is in between: it drops a session's settings \
                      and, in transaction mode, its locks; let DATABASE_URL name Postgres itself \
                      (Starling pools its connections), or a pool in session mode that passes on \
                      `options`";

/// The connections to an SQLite file.
struct Sqlite {
    reader: Db,
    session_reader: Db,
    writer: Db,
}

async fn sqlite(dir: &Path) -> Result<Sqlite> {
    std::fs::create_dir_all(dir).map_err(Error::internal)?;

    let options = SqliteConnectOptions::new()
        .filename(dir.join("starling.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: an acknowledged message is on disk, not only in the page cache.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_MAX);
    let pool = |connections_max| {
        SqlitePoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(UNIT_QUEUE_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
    };

    let writer = first_connection(|| pool(1).connect_with(options.clone())).await?;

    let version: String =
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&writer).await.map_err(failure)?;
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    if (part(), part(), part()) < SQLITE_MIN {
        return Err(Error::internal(format!("SQLite {version} is older than {SQLITE_MIN:?}")));
    }

    let read_only = options.read_only(true).create_if_missing(false);
    let reader = pool(SQLITE_READERS).connect_with(read_only.clone()).await.map_err(failure)?;
    let session_reader =
        pool(SQLITE_SESSION_READERS).connect_with(read_only).await.map_err(failure)?;
    Ok(Sqlite {
        reader: Db::Sqlite(reader),
        session_reader: Db::Sqlite(session_reader),
        writer: Db::Sqlite(writer),
    })
}

/// Connects, and retries for as long as SQLite waits for a lock. SQLite does not wait if two
/// processes create the same file: the slower one to switch it to WAL is refused at once, whatever
/// its busy timeout is.
async fn first_connection<T, F: Future<Output = sqlx::Result<T>>>(
    connect: impl Fn() -> F,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match connect().await.map_err(failure) {
            Err(error) if error.code == Code::Unavailable && start.elapsed() < BUSY_MAX => {
                tokio::time::sleep(BUSY_RETRY).await;
            }
            result => return result,
        }
    }
}

/// How long a unit of work queues for the one SQLite writer. Many short units of work pass in this
/// time.
const UNIT_QUEUE_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sqlite_has_the_compile_options_of_the_cargo_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(Sqlite { reader: Db::Sqlite(reader), .. }) = sqlite(dir.path()).await else {
            panic!("no SQLite")
        };
        let options: Vec<String> =
            sqlx::query_scalar("PRAGMA compile_options").fetch_all(&reader).await.unwrap();
        let has = |option: &str| options.iter().any(|known| known == option);
        assert!(
            has("ENABLE_QPSG") && has("DEFAULT_MEMSTATUS=0"),
            ".cargo/config.toml was not read: {options:?}"
        );
        assert!(!has("ENABLE_MEMORY_MANAGEMENT"), "{options:?}");
    }
}
