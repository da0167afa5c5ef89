//! Clients that do not read.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use starling_loadtest::services::process::{peak_resident_bytes, resident_bytes};

use super::light::Light;
use super::{send, users};
use crate::chaos::stage::{Stage, StageOptions};
use crate::support::User;

/// Clients. Each user has the maximum number of connections.
const READERS: usize = 500;
const OF_A_USER: usize = 20;
/// The resident bytes that a client may cost. The promise is twice as much, but without any bound
/// these messages would take little more than this.
const EACH_BYTES_MAX: u64 = 1024 * 1024;
/// Messages of the longest text: more than an outbox and the system's socket buffers hold.
const SENDS: u32 = 130;
/// How long the clients stall.
const STALL: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn five_hundred_stalled_clients_cost_at_most_two_mebibytes_each_and_lose_nothing() {
    let stage = Stage::set(1, &StageOptions::default()).await;
    let people = users(&stage, &vec![0; READERS / OF_A_USER + 1]).await;
    let (writer, readers) = people.split_first().unwrap();
    let chat = writer.channel(&readers.iter().collect::<Vec<_>>()).await;
    let owner = |number: usize| &readers[number / OF_A_USER];
    let mut clients =
        connect_all(&chat, (0..READERS).map(|number| (owner(number), 1)).collect()).await;
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

    // The frames that reached the socket have no gap. Then the connection is closed.
    let revs = join_all(clients.iter_mut().map(async |client| {
        assert!(!client.until(last).await, "the connection is closed before the last message");
        client.rev.unwrap()
    }));
    let revs = revs.await;
    drop(clients);

    // The clients reconnect, sync from their revs, and stall again. Each has missed more than its
    // outbox may hold.
    assert!(revs.iter().all(|rev| *rev < SENDS / 2), "{revs:?}");

    let clients = connect_all(
        &chat,
        revs.iter().enumerate().map(|(number, rev)| (owner(number), *rev)).collect(),
    )
    .await;
    tokio::time::sleep(STALL).await;

    let start = Instant::now();
    let reading = clients.into_iter().enumerate().map(async |(number, mut client)| {
        while !client.until(last).await {
            let rev = client.rev;
            drop(client);
            client = reconnect(owner(number), &chat, rev, start).await;
        }
    });

    // Fifty clients at a time, since a debug build is too slow for more.
    stream::iter(reading).buffer_unordered(50).collect::<Vec<()>>().await;

    let peak = peak_resident_bytes(pid).unwrap() - before;
    let mib = |bytes: u64| bytes / 1024 / 1024;
    println!(
        "{READERS} stalled readers: {} MiB while live, {} MiB in all; \
         the slowest had everything after {:.1} s",
        mib(live),
        mib(peak),
        start.elapsed().as_secs_f64()
    );
    assert!(peak <= READERS as u64 * EACH_BYTES_MAX, "{} MiB", mib(peak));
}

/// Retries until there is a connection: the slot of the previous one may still count.
async fn reconnect(user: &User, chat: &str, rev: Option<u32>, start: Instant) -> Light {
    loop {
        match Light::connect(user, chat, rev, false).await {
            Ok(client) => return client,
            Err(error) => assert!(start.elapsed() < Duration::from_mins(2), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Connections with small receive buffers that sync from these revs.
async fn connect_all(chat: &str, revs: Vec<(&User, u32)>) -> Vec<Light> {
    let connecting = revs.into_iter().map(async |(user, rev)| {
        Light::connect(user, chat, Some(rev), true).await.expect("the client connects")
    });
    stream::iter(connecting).buffered(32).collect().await
}
