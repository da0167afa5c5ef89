//! What it costs to find out what changed in a million chats, and what noting a change adds to each
//! of them.
//!
//! `tests/with-services.sh cargo bench --bench look`, with `STARLING_CHATS` chats (a million if
//! absent). It makes a database of its own on the Postgres of `STARLING_TEST_POSTGRES`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at a fault"
)]

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use starling::model::ChatId;
use starling::store::{Store, StoreOptions};

/// Looks and rounds of changes measured.
const ROUNDS: usize = 21;
/// Chats changed in a round.
const CHANGED: i64 = 1_000;
/// Most rows of one look.
const LOOK_MAX: i64 = 10_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let setting =
        |name: &str| std::env::vars().find_map(|(key, value)| (key == name).then_some(value));
    let Some(server) = setting("STARLING_TEST_POSTGRES") else {
        println!("no Postgres: run it by tests/with-services.sh");
        return;
    };
    let chats = setting("STARLING_CHATS").and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    runtime.block_on(measure(&server, chats));
}

async fn measure(server: &str, chats: i64) {
    let name = format!("look_{:016x}", rand::random::<u64>());
    let mut connection = PgConnection::connect(server).await.unwrap();
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    let store = Store::open(&StoreOptions::Postgres { url: url.clone(), connections_max: 4 })
        .await
        .unwrap();
    store.migrate().await.unwrap();

    let mut database = PgConnection::connect(&url).await.unwrap();
    database
        .execute(AssertSqlSafe(format!(
            "INSERT INTO chats (id, kind, created_at_ms, rev, renamed_rev, member_count, activity_at_ms) \
             SELECT gen_random_uuid(), 'group', 0, 1, 1, 2, 0 FROM generate_series(1, {chats})"
        )))
        .await
        .unwrap();
    database.execute("VACUUM ANALYZE chats").await.unwrap();

    let next_slot = store.change_slot().await.unwrap() + 2;
    let (idle, found) = looks(&store, next_slot).await;
    println!("a look at {chats} chats of which {found} changed: {idle:.2?}");

    let (noted, bare) = changes(&mut database).await;
    let each = |all: Duration| all / u32::try_from(CHANGED).unwrap();
    println!(
        "the first change of a chat in its slot: {:.1?} with the trigger, {:.1?} without it",
        each(noted),
        each(bare)
    );

    let slot = store.change_slot().await.unwrap();
    database.execute(AssertSqlSafe(change())).await.unwrap();
    let (busy, found) = looks(&store, slot).await;
    println!("a look at {chats} chats of which {found} changed: {busy:.2?}");
    connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
}

/// The median time of a look from this slot on, and how many chats it finds.
async fn looks(store: &Store, slot: i64) -> (Duration, usize) {
    let (mut took, mut count) = (Vec::with_capacity(ROUNDS), 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = store.chats_changed(slot, ChatId::default(), LOOK_MAX).await.unwrap();
        took.push(start.elapsed());
        count = found.len();
    }
    (median(took), count)
}

/// The median time in which as many chats change, with the trigger that notes it and without, in
/// turns.
async fn changes(database: &mut PgConnection) -> (Duration, Duration) {
    let (mut noted, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (state, took) in [("ENABLE", &mut noted), ("DISABLE", &mut bare)] {
            let switch = format!("ALTER TABLE chats {state} TRIGGER chats_changed");
            database.execute(AssertSqlSafe(switch)).await.unwrap();
            let start = Instant::now();
            database.execute(AssertSqlSafe(change())).await.unwrap();
            took.push(start.elapsed());
        }
    }
    database.execute("ALTER TABLE chats ENABLE TRIGGER chats_changed").await.unwrap();
    (median(noted), median(bare))
}

/// Changes chats, each time others by chance.
fn change() -> String {
    format!(
        "UPDATE chats SET rev = rev + 1 WHERE id IN (SELECT id FROM chats WHERE id > gen_random_uuid() LIMIT {CHANGED})"
    )
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}
