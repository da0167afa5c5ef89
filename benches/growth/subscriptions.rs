//! The cost of a replica that subscribes to very many chats: the memory of Redis, the time until
//! all subscriptions are restored after its connection was cut, and the delay of events between
//! other replicas meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use starling::cluster::redis::{Channel, ClusterKey, RedisCluster, ReplicaId};
use starling::cluster::{Arrival, Bus};
use starling::model::{ChatId, Clock, Event, PresentEpoch, Topic, UserId};
use starling::tasks::Tasks;
use starling_loadtest::services::Redis;

/// Timeout of each step.
const STEP_MAX: Duration = Duration::from_mins(3);
/// Pause between two events of the publishing replica.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);

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

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < STEP_MAX, "{what}: not in {STEP_MAX:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn info(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg("memory").query_async(connection).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.expect("INFO has the figure").trim().parse().unwrap()
}

/// The client of Redis with the most subscriptions: its id, and the number of its subscriptions.
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

pub async fn measure(count: u64) {
    let server = Redis::start(&[]).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    // Redis answers late while it removes the subscriptions of a closed connection.
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(STEP_MAX));
    let mut control = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();

    let (many, _many_tasks) = join(&server.url());
    let (publisher, _publisher_tasks) = join(&server.url());
    let (mut other, _other_tasks) = join(&server.url());
    for replica in [&many, &publisher, &other] {
        until("connected", || replica.health.is_connected()).await;
    }

    subscribe(&many, &mut control, count).await;

    // The delay of events between two other replicas, before and while the large replica subscribes
    // again.
    let clock = Clock::system();
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
        until("the replica detects the cut", || !many.health.is_connected()).await;
        until("subscribed again", || many.health.is_connected()).await;
        println!("subscribed again {:.1?} after the cut", cut.elapsed());
        report("meanwhile", &latencies, &pending);
    };
    tokio::select! {
        () = cutting => {}
        () = publishing => {}
        () = receiving => {}
    }
}

/// Subscribes a replica to this many chats. Prints the time and the memory that it takes.
async fn subscribe(
    replica: &RedisCluster,
    control: &mut redis::aio::MultiplexedConnection,
    count: u64,
) {
    let before = info(control, "used_memory").await;
    let (clock, start) = (Clock::system(), Instant::now());
    let mut channels = HashSet::new();
    for _ in 0..count {
        let topic = Topic::Chat(ChatId::new(clock.now(), &mut rand::rng()));
        channels.insert(Channel::of(topic));
        replica.bus.follow(topic);
    }

    let channels = channels.len() as u64;
    loop {
        let (_, subscriptions) = largest(control).await;
        if subscriptions >= channels {
            break;
        }
        assert!(start.elapsed() < STEP_MAX, "{subscriptions} subscriptions");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let took = start.elapsed();
    let memory = info(control, "used_memory").await.saturating_sub(before);
    println!("one replica subscribes to {count} chats, over {channels} channels");
    println!("first subscription: {took:.1?}");
    println!(
        "memory of Redis: {} MB, {} bytes per channel",
        memory / 1_000_000,
        memory / channels.max(1)
    );
}

/// Prints the delays since the previous report, and clears them.
fn report(when: &str, latencies: &Mutex<Vec<Duration>>, pending: &Mutex<HashMap<UserId, Instant>>) {
    let mut received = std::mem::take(&mut *latencies.lock());
    received.sort_unstable();
    let at = |share: usize| {
        received.get(received.len() * share / 100).or(received.last()).copied().unwrap_or_default()
    };
    let in_flight = std::mem::take(&mut *pending.lock()).len();
    println!(
        "{when}: {} events received, p50 {:.1?}, p99 {:.1?}, max {:.1?}; {in_flight} in flight",
        received.len(),
        at(50),
        at(99),
        at(100),
    );
}
