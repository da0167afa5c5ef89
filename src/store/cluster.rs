//! The values that all replicas share through the database: a key, and the time.

use super::{MapOkDrop, Store, on, timed};
use crate::model::{Error, Result, Timestamp};

impl Store {
    /// The key that all replicas on this database share. If there is none yet, it becomes `fresh`.
    pub async fn cluster_key(&self, fresh: [u8; 32]) -> Result<[u8; 32]> {
        timed("cluster_key", || async {
            on!(self.writer(), |db| sqlx::query(
                "INSERT INTO cluster_keys (id, key) VALUES (1, $1) ON CONFLICT DO NOTHING"
            )
            .bind(&fresh[..])
            .execute(db)
            .map_ok_drop())?;

            let key: Vec<u8> = on!(self.writer(), |db| sqlx::query_scalar(
                "SELECT key FROM cluster_keys WHERE id = 1"
            )
            .fetch_one(db))?;
            key.try_into()
                .map_err(|_| Error::internal("the key in cluster_keys does not have 32 bytes"))
        })
        .await
    }

    /// The time of the database's clock, which all replicas follow. `None` for the embedded
    /// database, which has no clock of its own.
    pub async fn time(&self) -> Result<Option<Timestamp>> {
        timed("time", || async {
            if self.is_embedded() {
                return Ok(None);
            }
            let ms = "SELECT (EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) * 1000)::BIGINT";
            on!(self.reader(), |db| sqlx::query_scalar(ms).fetch_one(db)).map(Some)
        })
        .await
    }
}
