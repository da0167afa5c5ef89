//! A database for each test: an SQLite file in its directory, or a Postgres database made from a
//! migrated template.

use sqlx::{Connection, Executor, PgConnection};
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

/// A test's own database.
pub enum Database {
    Sqlite,
    Postgres { name: String },
}

/// The template of this process, made by whichever test comes first.
static TEMPLATE: OnceCell<String> = OnceCell::const_new();

/// The superuser's URL of the test Postgres.
pub fn postgres_url() -> String {
    std::env::vars()
        .find_map(|(key, value)| (key == "STARLING_TEST_POSTGRES").then_some(value))
        .expect("tests on Postgres need a server: run them by `make test`, or through tests/with-services.sh")
}

fn url_of(database: &str) -> String {
    let url = postgres_url();
    let (base, _) = url.rsplit_once('/').expect("a Postgres URL ends in /database");
    format!("{base}/{database}")
}

async fn execute(sql: String) {
    let mut connection =
        PgConnection::connect(&postgres_url()).await.expect("the test Postgres answers");
    connection.execute(sqlx::AssertSqlSafe(sql)).await.expect("the statement runs");
    connection.close().await.expect("the connection closes");
}

async fn template() -> String {
    let name = format!("starling_template_{}", std::process::id());
    execute(format!("CREATE DATABASE {name}")).await;
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
                execute(format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
                Self::Postgres { name }
            }
        }
    }

    /// A Postgres database without a schema.
    pub async fn blank() -> Self {
        let name = format!("starling_{:032x}", rand::random::<u128>());
        execute(format!("CREATE DATABASE {name}")).await;
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
            execute(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        }
    }
}
