//! Clients that connect and sync while others send.

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

/// The number of syncs, unless `STARLING_JOINS` names another. `make chaos` makes ten thousand.
const JOINS: u64 = 3_000;
/// Clients at once, two of each user.
const AT_ONCE: usize = 32;
/// Writers, each of which sends as soon as it gets the acknowledgements.
const WRITERS: usize = 3;
/// The live messages that a client receives before it disconnects.
const LIVE: u32 = 3;

/// Pauses at two steps where a message could be lost: between the subscription and the snapshot,
/// and between the snapshot and the frames.
const PAUSES: &str = "followed=wait:10/10,snapshot_read=wait:10/10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn syncs_during_sends_miss_nothing_and_repeat_nothing() {
    let start = Instant::now();
    let joins = u32::try_from(variable("STARLING_JOINS").unwrap_or(JOINS)).unwrap();
    let sent = join_under_fire(joins).await;
    println!(
        "{joins} joins while {sent} messages were sent, in {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

/// Makes this number of syncs. Returns how many messages were sent meanwhile.
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

/// Connects and syncs, half of the time from a recent rev of the chat.
async fn join(user: &User, chat: &str, newest: u32) {
    let rev = rand::rng()
        .random::<bool>()
        .then(|| newest.saturating_sub(rand::rng().random_range(0..30)).max(1));

    let joining = async {
        let mut client = Light::connect(user, chat, rev, false).await.expect("the client connects");
        assert!(client.until_synced().await, "the client is synced");
        for _ in 0..LIVE {
            assert!(matches!(client.step().await, Step::Message(_)), "live messages follow");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), joining).await.expect("in time");
}
