//! A database of its own for one measurement.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use starling::store::{Store, StoreOptions};

pub struct Database {
    pub store: Store,
    pub url: String,
    name: String,
    control: PgConnection,
}

impl Database {
    /// Creates a database on this server, with the server's tables.
    pub async fn create(server: &str) -> Self {
        let name = format!("growth_{:016x}", rand::random::<u64>());
        let mut control = PgConnection::connect(server).await.unwrap();
        control.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();

        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        let options = StoreOptions::Postgres { url: url.clone(), connections_max: 4 };
        let store = Store::open(&options).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, url, name, control }
    }

    pub async fn remove(mut self) {
        self.store.close().await;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        self.control.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}
