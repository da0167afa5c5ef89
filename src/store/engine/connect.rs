//! Opening the database, with the settings that its promises need.

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

/// How each session is set. A replica that vanishes without a word leaves a session behind, with
/// its locks: one that paused within a transaction for longer than any unit of work takes is ended,
/// and one whose peer answers no probe of TCP within about 15 s. (Over a Unix socket the latter
/// mean nothing.)
const SESSION: [(&str, &str); 5] = [
    ("idle_in_transaction_session_timeout", "4s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10s"),
];
/// Connections that only readiness and the look at the log's epoch use.
const PROBES_MAX: u32 = 2;
/// Age at which one of these is replaced: an address that names another server now is noticed
/// within this time even where the old server still answers. Opening one costs a few milliseconds.
const PROBE_AGE_MAX: Duration = Duration::from_secs(10);
/// Connections that only sends use: each appender has one, and each lane that waits for a locked
/// chat.
#[expect(clippy::cast_possible_truncation, reason = "ten")]
const APPENDER_CONNECTIONS: u32 = (APPENDERS + LANES_AT_ONCE_MAX) as u32;
/// How long the database has to answer at start.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long SQLite waits for a lock of another process, such as `starling invite`.
const BUSY_MAX: Duration = Duration::from_secs(3);
/// Pause between two tries where SQLite does not wait by itself.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// Connections that read an SQLite file at once.
const SQLITE_READERS: u32 = 4;
/// Connections that read sessions from an SQLite file, whatever the others wait for.
const SQLITE_SESSION_READERS: u32 = 1;
/// Before this release a crash at the wrong moment could corrupt the write-ahead log.
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);

/// Which database to open.
#[derive(Clone, Debug)]
pub enum StoreOptions {
    /// `postgres://…`, and how many connections to it.
    Postgres {
        /// The address with user and password.
        url: String,
        /// Connections for requests. Sessions and probes have some of their own besides.
        connections_max: u32,
    },
    /// The file `starling.db` in this directory, made if need be.
    Sqlite {
        /// The data directory.
        dir: PathBuf,
    },
}

impl StoreOptions {
    /// Postgres at this address, known by these certificates. Their files are read anew for each
    /// connection.
    ///
    /// # Errors
    /// What is wrong with the address, or does not go with the certificates.
    pub fn postgres(
        mut url: String,
        connections_max: u32,
        certificates: Option<&Certificates>,
    ) -> Result<Self, String> {
        let options = PgConnectOptions::from_str(&url).map_err(|error| error.to_string())?;
        if let Some(certificates) = certificates {
            // The driver's `require` verifies nothing, whatever authority it is given.
            let mode = match options.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => {
                    return Err("says to go without TLS: change its sslmode to verify-full, or unset the files of \
                                certificates"
                        .to_owned());
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

    /// Whether what is said to the database crosses a network where its certificate is not
    /// verified.
    pub fn is_exposed(&self) -> bool {
        let Self::Postgres { url, .. } = self else { return false };
        PgConnectOptions::from_str(url).is_ok_and(|options| {
            let verified =
                matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
            let is_here = options.get_socket().is_some() || is_loopback(options.get_host());
            !is_here && !verified
        })
    }
}

impl Store {
    /// Opens the database. Does not touch its schema.
    ///
    /// # Errors
    /// `unavailable` if it can't be reached, `internal` if it can't be used.
    pub async fn open(options: &StoreOptions) -> Result<Self> {
        let (reader, writer, sessions, probe, appenders) = match options {
            StoreOptions::Postgres { url, connections_max } => {
                let options = postgres(url).await?;
                let trust = Trust::default();
                let with = |name, options: &PgConnectOptions, places, age_max| {
                    Db::Postgres(Pool::new(name, options.clone(), places, age_max, trust.clone()))
                };
                let requests = with("requests", &options, *connections_max, AGE_MAX);
                let sessions = with("sessions", &options, SESSION_CONNECTIONS_MAX, AGE_MAX);
                let sessions = SessionDb { reader: sessions.clone(), writer: sessions };
                let probing = options.clone().application_name("starling-probe");
                let probe = with("probes", &probing, PROBES_MAX, PROBE_AGE_MAX);
                let brief = options
                    .options([("lock_timeout", format!("{}ms", APPEND_LOCK_MAX.as_millis()))]);
                let appenders = with("appenders", &brief, APPENDER_CONNECTIONS, AGE_MAX);
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

    /// Opens the connections that sends use, so that the first of them does not wait for that. A
    /// failure is left for the first send to find.
    pub async fn warm_up(&self) {
        if let Db::Postgres(pool) = &self.appenders {
            pool.warm_up(APPENDERS).await;
        }
    }
}

/// How to connect, tried once.
async fn postgres(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .map_err(failure)?
        .application_name("starling")
        .options([("statement_timeout", format!("{}ms", STATEMENT_MAX.as_millis()))])
        .options(SESSION);
    let place = format!("{}:{}", options.get_host(), options.get_port());
    let away = |error: &dyn std::fmt::Display, advice: &str| {
        Error::unavailable(io::Error::other(format!(
            "can't use Postgres at {place}: {error}; {advice}"
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

/// What to do about a PgBouncer in between.
const POOLER: &str = "a pooler such as PgBouncer is in between, which does not pass on a session's settings and, by \
                      transaction, neither its locks: let DATABASE_URL name Postgres itself (Starling pools its \
                      connections), or a pool in session mode that passes on `options`";

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
        // FULL: an acknowledged message is on disk, not just in the page cache.
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

/// Tries for as long as a lock is waited for. SQLite itself does not wait where two processes make
/// the same file: the slower one to switch it to WAL is refused at once, whatever its busy timeout.
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

/// How long a unit of work queues for SQLite's one writer: many short ones pass in this time.
const UNIT_QUEUE_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sqlite_is_compiled_as_this_repository_says() {
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
