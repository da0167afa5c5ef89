//! Clients that come while others write.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::RngExt;
use serde_json::json;

use super::light::{Light, Step};
use super::{through, users};
use crate::chaos::stage::{Stage, StageOptions};
use crate::chaos::variable;
use crate::support::{Socket, User};

/// Syncs in all, unless `STARLING_JOINS` says otherwise: `make chaos` has ten thousand.
const JOINS: u64 = 3_000;
/// Clients at once, two of each user.
const AT_ONCE: usize = 32;
/// Writers, each as fast as it is answered.
const WRITERS: usize = 3;
/// What one hears of the live stream before it goes.
const HEARD: u32 = 3;

/// Pauses where something could slip through: the chat is followed and not read, it is read and not
/// told.
const PAUSES: &str = "followed=wait:10/10,snapshot_read=wait:10/10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn joins_under_writers_at_full_speed_miss_nothing_and_hear_nothing_twice() {
    let start = Instant::now();
    let joins = u32::try_from(variable("STARLING_JOINS").unwrap_or(JOINS)).unwrap();
    let sent = join_under_fire(joins).await;
    println!(
        "{joins} joins while {sent} messages were sent, in {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

/// So many joins; how many messages came meanwhile.
async fn join_under_fire(joins: u32) -> u32 {
    let options = StageOptions { failpoints: PAUSES, ..StageOptions::default() };
    let stage = Stage::set(2, &options).await;
    let people = users(&stage, &[0; WRITERS + AT_ONCE / 2]).await;
    let chat = people[0].group(&people[1..].iter().collect::<Vec<_>>()).await;
    let (writers, readers) = people.split_at(WRITERS);
    let (left, newest, over) = (AtomicU32::new(joins), AtomicU32::new(1), AtomicBool::new(false));
    let writing = join_all(writers.iter().enumerate().map(async |(number, writer)| {
        let mut socket = Socket::connect(&through(writer, &stage, number % 2)).await;
        while !over.load(Ordering::Relaxed) {
            for _ in 0..10 {
                socket
                    .send(json!({ "type": "send_message", "chat_id": chat, "text": "over here" }))
                    .await;
            }
            for _ in 0..10 {
                let rev = socket.expect("ack").await["message"]["rev"].as_u64().unwrap();
                newest.fetch_max(u32::try_from(rev).unwrap(), Ordering::Relaxed);
            }
        }
    }));
    let reading = async {
        join_all((0..AT_ONCE).map(async |number| {
            let user = through(&readers[number / 2], &stage, number % 2);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                join(&user, &chat, newest.load(Ordering::Relaxed)).await;
            }
        }))
        .await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, reading);
    newest.load(Ordering::Relaxed)
}

/// Half of them know the chat, up to some rev of late.
async fn join(user: &User, chat: &str, newest: u32) {
    let known = rand::rng()
        .random::<bool>()
        .then(|| newest.saturating_sub(rand::rng().random_range(0..30)).max(1));
    let joining = async {
        let mut client = Light::connect(user, chat, known, false).await.expect("it is let in");
        assert!(client.until_synced().await, "it is brought up to date");
        for _ in 0..HEARD {
            assert!(matches!(client.step().await, Step::Told(_)), "it goes on to hear");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), joining).await.expect("in time");
}
