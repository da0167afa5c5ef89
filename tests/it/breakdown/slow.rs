//! Clients that do not read.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use starling_loadtest::services::process::{peak_resident_bytes, resident_bytes};

use super::light::Light;
use super::{send, users};
use crate::chaos::stage::{Stage, StageOptions};
use crate::support::User;

/// Clients, each user having as many as one may.
const READERS: usize = 500;
const OF_A_USER: usize = 20;
/// What one of them may cost, in resident bytes. Twice as much is promised; but of what is sent no
/// more than this would be in memory if nothing bounded it.
const EACH_BYTES_MAX: u64 = 1024 * 1024;
/// Messages of the longest text: more than a connection's bound and the sockets' own buffers hold.
const SENDS: u32 = 130;
/// How long everybody stalls.
const STALL: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn five_hundred_stalled_readers_cost_two_mebibytes_each_at_most_and_come_back_without_loss() {
    let stage = Stage::set(1, &StageOptions::default()).await;
    let people = users(&stage, &vec![0; READERS / OF_A_USER + 1]).await;
    let (writer, readers) = people.split_first().unwrap();
    let chat = writer.channel(&readers.iter().collect::<Vec<_>>()).await;
    let owner = |number: usize| &readers[number / OF_A_USER];
    let mut clients = come(&chat, (0..READERS).map(|number| (owner(number), 1)).collect()).await;
    for client in &mut clients {
        assert!(client.until_synced().await);
    }
    let pid = stage.replicas[0].pid().unwrap();
    let before = resident_bytes(pid).unwrap();
    let filler = "🐢".repeat(4_000);
    for number in 1..=SENDS {
        assert_eq!(send(writer, &chat, &format!("{number} {filler}")).await, 201);
    }
    tokio::time::sleep(STALL).await;
    let live = peak_resident_bytes(pid).unwrap() - before;
    let last = SENDS + 1;
    // What went into the sockets is whole; the rest is not there.
    let known = join_all(clients.iter_mut().map(async |client| {
        assert!(!client.until(last).await, "it was closed before it had everything");
        client.rev.unwrap()
    }));
    let known = known.await;
    drop(clients);
    // They come back, ask for the rest, which is more than may wait for one, and stall again.
    assert!(known.iter().all(|known| *known < SENDS / 2), "{known:?}");
    let clients =
        come(&chat, known.iter().enumerate().map(|(number, rev)| (owner(number), *rev)).collect())
            .await;
    tokio::time::sleep(STALL).await;
    let start = Instant::now();
    let reading = clients.into_iter().enumerate().map(async |(number, mut client)| {
        while !client.until(last).await {
            let known = client.rev;
            drop(client);
            client = come_back(owner(number), &chat, known, start).await;
        }
    });
    // Some at a time: a debug build has only so many messages to give in a minute.
    stream::iter(reading).buffer_unordered(50).collect::<Vec<()>>().await;
    let peak = peak_resident_bytes(pid).unwrap() - before;
    let mib = |bytes: u64| bytes / 1024 / 1024;
    println!(
        "{READERS} stalled readers: {} MiB while live, {} MiB in all; the slowest had everything after {:.1} s",
        mib(live),
        mib(peak),
        start.elapsed().as_secs_f64()
    );
    assert!(peak <= READERS as u64 * EACH_BYTES_MAX, "{} MiB", mib(peak));
}

/// As often as it takes: the place of the connection before may still be taken.
async fn come_back(user: &User, chat: &str, known: Option<u32>, start: Instant) -> Light {
    loop {
        match Light::connect(user, chat, known, false).await {
            Ok(client) => return client,
            Err(error) => assert!(start.elapsed() < Duration::from_mins(2), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Connections with small buffers that asked for what came after these revs.
async fn come(chat: &str, known: Vec<(&User, u32)>) -> Vec<Light> {
    let connecting = known.into_iter().map(async |(user, rev)| {
        Light::connect(user, chat, Some(rev), true).await.expect("it is let in")
    });
    stream::iter(connecting).buffered(32).collect().await
}
