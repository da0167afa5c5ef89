//! All clients of a killed replica reconnect at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use starling_loadtest::actor::{Account, Actor};
use starling_loadtest::client::Http;
use starling_loadtest::history::History;
use starling_loadtest::workload;
use tokio_util::sync::CancellationToken;

use super::Clients;
use crate::chaos::stage::{Stage, StageOptions};

/// The number of users. Each pair of them has a chat.
const USERS: usize = 56;
/// Devices of a user, nearly the maximum. Their old connection slots count until the dead replica's
/// lease ends.
const DEVICES: usize = 18;
/// Users who send meanwhile, each to one other user.
const WRITERS: usize = 10;
/// The pause of a writer between two messages.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn a_thousand_clients_of_a_killed_replica_reconnect_in_thirty_seconds_and_sends_stay_fast() {
    let (back, sends) = fall().await;
    let p99 = sends[sends.len() * 99 / 100];
    println!(
        "{} sockets dropped at once: back after {:.1} s; \
         {} sends meanwhile: p50 {:?}, p99 {p99:?}, slowest {:?}",
        USERS * DEVICES,
        back.as_secs_f64(),
        sends.len(),
        sends[sends.len() / 2],
        sends[sends.len() - 1]
    );

    assert!(back < Duration::from_secs(30), "{back:?}");
    assert!(sends.len() > 100 && p99 < Duration::from_secs(1), "{p99:?}");
}

/// Kills the replica of all devices. Returns after how long all are live on the other replica, and
/// how long each send through that replica took meanwhile, sorted.
async fn fall() -> (Duration, Vec<Duration>) {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    let herd = Clients::of(&stage, &stage.bases(), (USERS, DEVICES), |_| 0).await;
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
        // The writers have a thread of their own, so that the clients' load does not distort their
        // times.
        tokio::task::spawn_blocking(move || write_all(&base, &history, writers, &over))
    };

    // Let the first sends precede the kill.
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

    // The check reads the log from both replicas.
    stage.replicas[0].start();
    stage.replicas[0].until_ready().await;
    herd.must_be_clean().await;
    (back, sends)
}

/// Sends through one replica until `over`. Returns when each send began and how long it took.
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
