//! The time to find the changed chats among a million, and the time that the trigger
//! `chats_changed` adds to a change.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use starling::model::ChatId;
use starling::store::Store;

use super::database::Database;
use super::median;

/// Measurements of each kind.
const ROUNDS: usize = 21;
/// Chats that each round changes.
const CHANGED: i64 = 1_000;
/// Rows that one query may return.
const LOOK_MAX: i64 = 10_000;

pub async fn measure(server: &str, chats: u64) {
    let database = Database::create(server).await;
    let store = &database.store;
    let mut control = PgConnection::connect(&database.url).await.unwrap();
    control
        .execute(AssertSqlSafe(format!(
            "INSERT INTO chats (id, kind, created_at_ms, rev, renamed_rev, member_count, \
             activity_at_ms) \
             SELECT gen_random_uuid(), 'group', 0, 1, 1, 2, 0 FROM generate_series(1, {chats})"
        )))
        .await
        .unwrap();
    control.execute("VACUUM ANALYZE chats").await.unwrap();

    let next_slot = store.change_slot().await.unwrap() + 2;
    let (idle, found) = time_queries(store, next_slot).await;
    println!("query of {chats} chats, of which {found} changed: {idle:.2?}");

    let (with_trigger, without) = time_changes(&mut control).await;
    let each = |all: Duration| all / u32::try_from(CHANGED).unwrap();
    println!(
        "the first change of a chat in its slot: {:.1?} with the trigger, {:.1?} without it",
        each(with_trigger),
        each(without)
    );

    let slot = store.change_slot().await.unwrap();
    control.execute(AssertSqlSafe(change())).await.unwrap();
    let (busy, found) = time_queries(store, slot).await;
    println!("query of {chats} chats, of which {found} changed: {busy:.2?}");
    database.remove().await;
}

/// The median time of the query for chats that changed since this slot, and the number of chats
/// that it finds.
async fn time_queries(store: &Store, slot: i64) -> (Duration, usize) {
    let (mut took, mut count) = (Vec::with_capacity(ROUNDS), 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = store.chats_changed(slot, ChatId::default(), LOOK_MAX).await.unwrap();
        took.push(start.elapsed());
        count = found.len();
    }
    (median(took), count)
}

/// The median times of a change of [`CHANGED`] chats with the trigger and without it. The rounds
/// alternate.
async fn time_changes(database: &mut PgConnection) -> (Duration, Duration) {
    let (mut with_trigger, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (state, took) in [("ENABLE", &mut with_trigger), ("DISABLE", &mut without)] {
            let switch = format!("ALTER TABLE chats {state} TRIGGER chats_changed");
            database.execute(AssertSqlSafe(switch)).await.unwrap();
            let start = Instant::now();
            database.execute(AssertSqlSafe(change())).await.unwrap();
            took.push(start.elapsed());
        }
    }
    database.execute("ALTER TABLE chats ENABLE TRIGGER chats_changed").await.unwrap();
    (median(with_trigger), median(without))
}

/// The statement that changes [`CHANGED`] random chats.
fn change() -> String {
    format!(
        "UPDATE chats SET rev = rev + 1 \
         WHERE id IN (SELECT id FROM chats WHERE id > gen_random_uuid() LIMIT {CHANGED})"
    )
}
