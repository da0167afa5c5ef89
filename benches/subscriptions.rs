//! The cost of a replica that follows very many chats: memory of Redis, the time until all
//! subscriptions are in force again after its connection was cut, and the delay of events between
//! other replicas meanwhile.
//!
//! `cargo bench --bench subscriptions`, with `STARLING_SUBSCRIPTIONS` chats (a million if absent).
//! It starts a Redis of its own. Every step is bounded in time.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at a fault"
)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use starling::cluster::redis::{Channel, ClusterKey, RedisCluster, ReplicaId};
use starling::cluster::{Arrival, Bus};
use starling::model::{ChatId, Clock, Event, PresentEpoch, Topic, UserId};
use starling::tasks::Tasks;
use starling_loadtest::services::Redis;

/// Longest that any step may take.
const STEP_MAX: Duration = Duration::from_mins(3);
/// Pause between two events of the publishing replica.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let count = std::env::vars()
        .find_map(|(key, value)| (key == "STARLING_SUBSCRIPTIONS").then_some(value));
    runtime.block_on(measure(count.and_then(|count| count.parse().ok()).unwrap_or(1_000_000)));
}

fn join(url: &str) -> (RedisCluster, Tasks) {
    let (clock, tasks) = (Clock::system(), Tasks::default());
    let address = (url.parse().unwrap(), "bench".to_owned());
    (
        RedisCluster::join(
            address,
            ReplicaId(rand::random()),
            ClusterKey([7; 32]),
            PresentEpoch::default(),
            &clock,
            &tasks,
        ),
        tasks,
    )
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < STEP_MAX, "{what}: not in {STEP_MAX:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

async fn info(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg("memory").query_async(connection).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.expect("INFO has the figure").trim().parse().unwrap()
}

/// The client of Redis with the most subscriptions: its id, and how many.
async fn largest(connection: &mut redis::aio::MultiplexedConnection) -> (u64, u64) {
    let list: String = redis::cmd("CLIENT")
        .arg(&["LIST", "TYPE", "pubsub"])
        .query_async(connection)
        .await
        .unwrap();
    let field = |line: &str, name: &str| -> u64 {
        let found = line.split(' ').find_map(|field| field.strip_prefix(name));
        found.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let clients = list.lines().map(|line| (field(line, "id="), field(line, "sub=")));
    clients.max_by_key(|(_, subscriptions)| *subscriptions).unwrap_or_default()
}

async fn measure(count: u64) {
    let server = Redis::start(&[]).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    // Redis answers late while it forgets the subscriptions of a closed connection.
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(STEP_MAX));
    let mut control = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
    let (many, _many_tasks) = join(&server.url());
    let (publisher, _publisher_tasks) = join(&server.url());
    let (mut other, _other_tasks) = join(&server.url());
    for replica in [&many, &publisher, &other] {
        until("connected", || replica.health.is_connected()).await;
    }
    let before = info(&mut control, "used_memory").await;

    let clock = Clock::system();
    let start = Instant::now();
    let mut channels = HashSet::new();
    for _ in 0..count {
        let topic = Topic::Chat(ChatId::new(clock.now(), &mut rand::rng()));
        channels.insert(Channel::of(topic));
        many.bus.follow(topic);
    }
    let channels = channels.len() as u64;
    loop {
        let (_, subscriptions) = largest(&mut control).await;
        if subscriptions >= channels {
            break;
        }
        assert!(start.elapsed() < STEP_MAX, "{subscriptions} subscriptions");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = start.elapsed();
    let memory = info(&mut control, "used_memory").await.saturating_sub(before);
    println!("{count} chats followed by one replica, over {channels} channels");
    println!("subscribed at first in {first:.1?}");
    println!(
        "memory of Redis: {} MB, {} bytes a channel",
        memory / 1_000_000,
        memory / channels.max(1)
    );

    // The delay of events between two other replicas, before and while the large replica subscribes
    // again.
    let topic = ChatId::new(clock.now(), &mut rand::rng());
    other.bus.follow(Topic::Chat(topic));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let pending: Arc<Mutex<HashMap<UserId, Instant>>> = Arc::default();
    let publishing = async {
        loop {
            let user_id = UserId::new(clock.now(), &mut rand::rng());
            pending.lock().insert(user_id, Instant::now());
            publisher.bus.publish(Event::Typing { chat_id: topic, user_id });
            tokio::time::sleep(PUBLISH_EVERY).await;
        }
    };
    let latencies: Mutex<Vec<Duration>> = Mutex::default();
    let receiving = async {
        loop {
            if let Some(Arrival::Event(Event::Typing { user_id, .. })) = other.inbox.next().await
                && let Some(at) = pending.lock().remove(&user_id)
            {
                latencies.lock().push(at.elapsed());
            }
        }
    };
    let cutting = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        report("before", &latencies, &pending);
        let (id, _) = largest(&mut control).await;
        let _: u64 = redis::cmd("CLIENT")
            .arg(&["KILL", "ID", &id.to_string()])
            .query_async(&mut control)
            .await
            .unwrap();
        let cut = Instant::now();
        until("the cut is noticed", || !many.health.is_connected()).await;
        until("subscribed again", || many.health.is_connected()).await;
        println!("subscribed again {:.1?} after a cut", cut.elapsed());
        report("meanwhile", &latencies, &pending);
    };
    tokio::select! {
        () = cutting => {}
        () = publishing => {}
        () = receiving => {}
    }
}

fn report(when: &str, latencies: &Mutex<Vec<Duration>>, pending: &Mutex<HashMap<UserId, Instant>>) {
    let mut received = std::mem::take(&mut *latencies.lock());
    received.sort_unstable();
    let at = |share: usize| {
        received.get(received.len() * share / 100).or(received.last()).copied().unwrap_or_default()
    };
    let late = std::mem::take(&mut *pending.lock()).len();
    println!(
        "{when}: others received {} events, p50 {:.1?}, p99 {:.1?}, the last {:.1?}; {late} were on their way",
        received.len(),
        at(50),
        at(99),
        at(100),
    );
}
