//! Redis disconnects every subscriber again and again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::Clients;
use crate::chaos::stage::{Stage, StageOptions};

const USERS: usize = 24;
/// Messages that a writer sends before it waits for acknowledgements.
const AT_ONCE: usize = 24;
/// The number of acknowledged messages.
const SENDS: u64 = 50_000;
/// The pause between two cuts of every subscribed connection.
const CUT_EVERY: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn subscriptions_cut_five_times_a_second_during_fifty_thousand_sends_lose_nothing() {
    let start = Instant::now();
    let stage = Stage::set(3, &StageOptions::default()).await;
    let herd = Clients::of(&stage, &stage.bases(), (USERS, 1), |number| number).await;
    let mut chats = Vec::new();
    for number in 0..USERS {
        // Neighbours are on different replicas.
        chats.push(herd.community.private(number, (number + 1) % USERS).await.unwrap());
    }

    let (acknowledged, over) = (AtomicU64::new(0), CancellationToken::new());
    let writing = async {
        let writing = herd.devices.iter().zip(&chats).map(async |(device, chat)| {
            while acknowledged.load(Ordering::Relaxed) < SENDS {
                let texts: Vec<String> = (0..AT_ONCE).map(|_| herd.work.unique("cut")).collect();
                let sent = join_all(texts.iter().map(|text| device.send(chat, text, None))).await;
                let taken = sent.iter().filter(|answer| answer.is_ok()).count() as u64;
                acknowledged.fetch_add(taken, Ordering::Relaxed);
            }
        });

        join_all(writing).await;
        over.cancel();
        start.elapsed()
    };

    let cutting = async {
        let (mut rounds, mut cut) = (0, 0);
        while !over.is_cancelled() {
            cut += stage.redis.command::<u64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            rounds += 1;
            tokio::time::sleep(CUT_EVERY).await;
        }
        (rounds, cut)
    };

    let (took, (rounds, cut)) = tokio::join!(writing, cutting);
    let (_, report) = herd.end().await;
    println!("sent within {:.1} s; {cut} connections cut in {rounds} rounds", took.as_secs_f64());
    println!("checked after {:.1} s\n{report}", start.elapsed().as_secs_f64());

    // A replica backs off before it reconnects, so not every round cuts all three.
    assert!(cut > rounds / 3, "the cuts met connections: {cut} in {rounds} rounds");
    assert!(report.is_clean(), "{report}");
}
