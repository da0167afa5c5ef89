//! All clients of a replica at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use starling_loadtest::actor::{Account, Actor};
use starling_loadtest::client::Http;
use starling_loadtest::history::History;
use starling_loadtest::workload;
use tokio_util::sync::CancellationToken;

use super::Herd;
use crate::chaos::stage::{Stage, StageOptions};

/// Users, in pairs with a chat each.
const USERS: usize = 56;
/// Devices of a user, nearly as many as one may have: while the dead replica counts as alive, their
/// old places are taken.
const DEVICES: usize = 18;
/// Those who write meanwhile, each to one other.
const WRITERS: usize = 10;
/// Their pause between two messages.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn a_thousand_that_lost_their_replica_are_back_within_thirty_seconds_and_sends_stay_quick() {
    let (back, sends) = fall().await;
    let p99 = sends[sends.len() * 99 / 100];
    println!(
        "{} sockets dropped at once: back after {:.1} s; {} sends meanwhile: p50 {:?}, p99 {p99:?}, slowest {:?}",
        USERS * DEVICES,
        back.as_secs_f64(),
        sends.len(),
        sends[sends.len() / 2],
        sends[sends.len() - 1]
    );
    assert!(back < Duration::from_secs(30), "{back:?}");
    assert!(sends.len() > 100 && p99 < Duration::from_secs(1), "{p99:?}");
}

/// Everybody is on one replica, and it dies. After how long all are back on the other, and how long
/// each send through that one took meanwhile, in order.
async fn fall() -> (Duration, Vec<Duration>) {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    let herd = Herd::of(&stage, &stage.bases(), (USERS, DEVICES), |_| 0).await;
    let mut chats = Vec::new();
    for pair in 0..WRITERS {
        chats.push(herd.community.private(pair * 2, pair * 2 + 1).await.unwrap());
    }
    let over = CancellationToken::new();
    let writers = herd
        .community
        .actors
        .iter()
        .step_by(2)
        .map(|actor| actor.account().clone())
        .zip(chats)
        .collect();
    let history = herd.community.actors[0].history().clone();
    let writing = {
        let (base, over) = (stage.replicas[1].base(), over.clone());
        // On a thread of its own: what is measured is not how busy the thousand are.
        tokio::task::spawn_blocking(move || write_all(&base, &history, writers, &over))
    };
    // The first writes are before it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    stage.replicas[0].kill().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let all = workload::wait_until_live(&herd.devices, Duration::from_secs(40)).await;
    let back = if all { start.elapsed() } else { Duration::from_secs(40) };
    over.cancel();
    let written = writing.await.unwrap();
    let mut sends: Vec<Duration> =
        written.into_iter().filter(|(begun, _)| *begun >= start).map(|(_, took)| took).collect();
    sends.sort_unstable();
    // The log is read from both.
    stage.replicas[0].start();
    stage.replicas[0].until_ready().await;
    herd.must_be_clean().await;
    (back, sends)
}

/// When each message was sent through this replica, and how long it took.
fn write_all(
    base: &str,
    history: &Arc<History>,
    writers: Vec<(Account, String)>,
    over: &CancellationToken,
) -> Vec<(Instant, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let http = Http::new(&[base.to_owned()], Duration::from_secs(8)).unwrap();
    let writing = writers.into_iter().map(|(account, chat)| {
        let actor = Actor::new(http.clone(), history.clone(), account);
        async move { write(&actor, &chat, over).await }
    });
    runtime.block_on(join_all(writing)).into_iter().flatten().collect()
}

async fn write(actor: &Actor, chat: &str, over: &CancellationToken) -> Vec<(Instant, Duration)> {
    let mut sends = Vec::new();
    while !over.is_cancelled() {
        let (start, text) =
            (Instant::now(), format!("{} of {}", sends.len(), actor.account().login));
        let sent = actor.send(0, chat, &text, None).await;
        assert!(sent.is_ok(), "{sent:?}");
        sends.push((start, start.elapsed()));
        tokio::time::sleep(PAUSE.saturating_sub(start.elapsed())).await;
    }
    sends
}
