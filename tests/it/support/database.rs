//! A database for each test: an SQLite file in its directory, or a Postgres database made from a
//! migrated template.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use starling::store::{Store, StoreOptions};
use tokio::sync::OnceCell;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
    /// Two replicas on Postgres and Redis, behind a load balancer.
    Fleet,
}

/// The database of one test.
pub enum Database {
    Sqlite,
    Postgres { name: String },
}

/// The template database of this process. The first test that needs it creates it.
static TEMPLATE: OnceCell<String> = OnceCell::const_new();

/// The superuser's URL of the test Postgres.
pub fn postgres_url() -> String {
    std::env::vars()
        .find_map(|(key, value)| (key == "STARLING_TEST_POSTGRES").then_some(value))
        .expect(
            "tests on Postgres need a server: run them by `make test`, or through \
             tests/with-services.sh",
        )
}

fn url_of(database: &str) -> String {
    let url = postgres_url();
    let (base, _) = url.rsplit_once('/').expect("a Postgres URL ends in /database");
    format!("{base}/{database}")
}

async fn execute_as_superuser(sql: String) {
    let mut connection =
        PgConnection::connect(&postgres_url()).await.expect("the test Postgres answers");
    connection.execute(AssertSqlSafe(sql)).await.expect("the statement runs");
    connection.close().await.expect("the connection closes");
}

/// Runs statements on a connection.
pub async fn execute(db: &mut PgConnection, sql: &str) {
    db.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

/// Runs statements on the Postgres or SQLite database at `url`.
pub async fn execute_at(url: &str, sql: &str) {
    if url.starts_with("postgres") {
        execute(&mut PgConnection::connect(url).await.unwrap(), sql).await;
    } else {
        let mut db = SqliteConnection::connect(url).await.unwrap();
        db.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }
}

/// The number of sessions of this database that wait for a lock.
pub async fn lock_waits(db: &mut PgConnection) -> i64 {
    let sql = "SELECT COUNT(*) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

async fn template() -> String {
    let name = format!("starling_template_{}", std::process::id());
    execute_as_superuser(format!("CREATE DATABASE {name}")).await;
    let options = StoreOptions::Postgres { url: url_of(&name), connections_max: 2 };
    let store = Store::open(&options).await.expect("the template opens");
    store.migrate().await.expect("the template migrates");
    store.close().await;
    name
}

impl Database {
    pub async fn create(backend: Backend) -> Self {
        match backend {
            Backend::Sqlite => Self::Sqlite,
            Backend::Postgres | Backend::Fleet => {
                let template = TEMPLATE.get_or_init(template).await;
                let name = format!("starling_{:032x}", rand::random::<u128>());
                execute_as_superuser(format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
                Self::Postgres { name }
            }
        }
    }

    /// A Postgres database without a schema.
    pub async fn blank() -> Self {
        let name = format!("starling_{:032x}", rand::random::<u128>());
        execute_as_superuser(format!("CREATE DATABASE {name}")).await;
        Self::Postgres { name }
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Self::Sqlite => None,
            Self::Postgres { name } => Some(url_of(name)),
        }
    }

    pub async fn remove(&self) {
        if let Self::Postgres { name } = self {
            execute_as_superuser(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        }
    }
}
