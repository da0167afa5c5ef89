//! Statements that take a list of ids, written once for both databases.
//!
//! The text is written for Postgres: `= ANY($1)` with an array. SQLite has no arrays, so it gets a
//! JSON array of hexadecimal ids. SQLite has no row locks and, with one writer, needs none, so the
//! locking clause is cut off.

use uuid::Uuid;

/// Converts a statement to the form that SQLite accepts.
pub fn for_sqlite(sql: &str) -> String {
    let (unlocked, _) = sql.split_once(" FOR NO KEY UPDATE").unwrap_or((sql, ""));
    unlocked.replace("= ANY($1)", "IN (SELECT unhex(value) FROM json_each($1))")
}

/// A list of ids in the form that SQLite accepts.
pub(in crate::store) fn id_list(ids: impl Iterator<Item = Uuid>) -> String {
    ids.map(|id| id.simple().to_string()).collect::<serde_json::Value>().to_string()
}

/// Runs one statement whose first parameter is a list of ids, on either database:
/// `on_ids!(self.reader(), query_as, SQL, ids, |query, db| query.bind(now).fetch_all(db))`.
macro_rules! on_ids {
    ($db:expr, $kind:ident, $sql:expr, $ids:expr, |$query:ident, $c:ident| $run:expr) => {{
        let ids = $ids.iter().map(|id| id.0);
        match $db {
            $crate::store::Db::Postgres(pool) => $crate::store::lent!(pool, |$c| {
                let $query = sqlx::$kind($sql).bind(ids.collect::<Vec<uuid::Uuid>>());
                $run
            }),
            $crate::store::Db::Sqlite($c) => {
                let sql = sqlx::AssertSqlSafe($crate::store::engine::for_sqlite($sql));
                let $query = sqlx::$kind(sql).bind($crate::store::engine::id_list(ids));
                $run.await.map_err($crate::store::failure)
            }
        }
    }};
}
pub(in crate::store) use on_ids;

/// Like `on_ids!`, inside a unit of work.
macro_rules! within_ids {
    ($tx:expr, $kind:ident, $sql:expr, $ids:expr, |$query:ident, $c:ident| $run:expr) => {{
        let ids = $ids.iter().map(|id| id.0);
        $tx.count_statement();
        match &mut $tx.inner {
            $crate::store::Tx::Postgres(lease) => $crate::store::on_lease!(lease, |$c| {
                let $query = sqlx::$kind($sql).bind(ids.collect::<Vec<uuid::Uuid>>());
                $run
            }),
            $crate::store::Tx::Sqlite(tx) => {
                let $c = &mut **tx;
                let sql = sqlx::AssertSqlSafe($crate::store::engine::for_sqlite($sql));
                let $query = sqlx::$kind(sql).bind($crate::store::engine::id_list(ids));
                $run.await.map_err($crate::store::failure)
            }
            $crate::store::Tx::Ended => Err($crate::store::ended()),
        }
    }};
}
pub(in crate::store) use within_ids;
