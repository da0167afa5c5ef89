//! The promises of a fleet of processes when one part fails. `chaos` tests many faults at once.

mod cuts;
mod herd;
mod joins;
mod light;
mod rollout;
mod slow;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use starling::config::Config;
use starling::model::Clock;
use starling::server::Server;
use starling_loadtest::actor::Account;
use starling_loadtest::checker::{Evidence, Limits, Report, check};
use starling_loadtest::device::{Device, DeviceOptions};
use starling_loadtest::history::{Bounds, History, Record};
use starling_loadtest::workload::{self, Community, Work};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::chaos::stage::{Stage, StageOptions};
use crate::chaos::verdict::HEAL;
use crate::support::{Backend, Database, Mode, Socket, User, eventually, settings};

/// Creates accounts, each a client of the replica with this number.
async fn users(stage: &Stage, replicas: &[usize]) -> Vec<User> {
    let lines = stage.make_users(replicas.len()).await;
    let made = lines.lines().zip(replicas).map(|(line, replica)| {
        let account: serde_json::Value = serde_json::from_str(line).unwrap();
        let word = |key: &str| account[key].as_str().unwrap().to_owned();
        User::new(
            stage.bases()[*replica].clone(),
            word("user_id"),
            word("login"),
            word("password"),
            word("token"),
        )
    });
    made.collect()
}

/// The same account as a client of another replica.
fn through(user: &User, stage: &Stage, replica: usize) -> User {
    let mut elsewhere = user.clone();
    elsewhere.base.clone_from(&stage.bases()[replica]);
    elsewhere
}

async fn send(user: &User, chat: &str, text: &str) -> u16 {
    user.post(&format!("/chats/{chat}/messages"), json!({ "text": text })).await.status
}

/// Reads up to the message with this text. Returns how long that took. The ping serves as a
/// heartbeat.
async fn received(socket: &mut Socket, text: &str) -> Duration {
    let start = Instant::now();
    socket.send(json!({ "type": "ping" })).await;
    loop {
        let frame = socket.next().await;
        if frame["message"]["text"] == text {
            return start.elapsed();
        }
        assert!(frame["type"] == "pong" || frame["type"] == "new_message", "{frame}");
    }
}

/// The number of crashes in all.
const DEATHS: usize = 200;
/// The fleets that run concurrently, since each spends most of its time waiting.
const FLEETS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn a_commit_of_a_replica_that_crashed_before_publishing_arrives_within_five_seconds() {
    let start = Instant::now();
    let slowest = join_all((0..FLEETS).map(|_| crash_after_commits(DEATHS / FLEETS))).await;
    println!(
        "{DEATHS} crashes in {:.1} s; messages received after {slowest:?} at most",
        start.elapsed().as_secs_f64()
    );
    assert!(slowest.iter().all(|slowest| *slowest < Duration::from_secs(5)), "{slowest:?}");
}

/// Crashes a replica again and again between a commit and its publication. Returns how long the
/// slowest message took to reach the other replica's client, up to 8 s.
async fn crash_after_commits(rounds: usize) -> Duration {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    let mut slowest = Duration::ZERO;
    let people = users(&stage, &[0, 1]).await;
    let chat = people[0].private_chat(&people[1]).await;
    let mut socket = Socket::live(&people[1]).await;
    stage.replicas[0].set("STARLING_FAILPOINTS", "committed=crash/1");

    for round in 0..rounds {
        stage.replicas[0].kill().await;
        stage.replicas[0].start();
        stage.replicas[0].until_ready().await;

        let (text, base) = (format!("the last words {round}"), &people[0].base);
        let http = reqwest::Client::new().post(format!("{base}/chats/{chat}/messages"));
        let cut = http.bearer_auth(&people[0].token).json(&json!({ "text": text })).send().await;
        assert!(cut.is_err(), "the replica crashes at this send");

        let start = Instant::now();
        let received =
            tokio::time::timeout(Duration::from_secs(8), received(&mut socket, &text)).await;
        slowest = slowest.max(start.elapsed());
        if received.is_err() {
            break;
        }
    }
    slowest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_session_ends_on_every_replica_in_time_also_without_redis() {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    for (trouble, bound_s) in [("none", 5), ("flushed", 5), ("deaf", 5), ("down", 10)] {
        let user = user_named(&stage, trouble).await;
        let elsewhere = through(&user, &stage, 1);
        let mut socket = Socket::live(&elsewhere).await;
        assert_eq!(elsewhere.get("/users/me").await.status, 200);

        let other =
            user.post("/sessions", json!({ "login": user.login, "password": user.password })).await;
        let other = user.with_token(other.expect(201)["token"].as_str().unwrap());
        let sessions = other.get("/sessions").await.expect(200);
        let first = sessions["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["current"] == false)
            .unwrap();

        match trouble {
            "flushed" => drop(stage.redis.command::<String>(&["FLUSHALL"]).await),
            "deaf" => stage.replicas[1].to_redis.set(Mode::BlackHole),
            "down" => stage.redis.kill(),
            _ => {}
        }

        let start = Instant::now();
        let ended = other.delete(&format!("/sessions/{}", first["id"].as_str().unwrap())).await;
        assert_eq!(ended.status, 204, "{trouble}");
        assert_eq!(socket.close_code().await, 4401, "{trouble}");
        eventually("the token is refused", async || {
            user.get("/users/me").await.status == 401
                && elsewhere.get("/users/me").await.status == 401
        })
        .await;

        assert!(start.elapsed() < Duration::from_secs(bound_s), "{trouble}: {:?}", start.elapsed());
        stage.replicas[1].to_redis.set(Mode::Pass);
    }
}

async fn user_named(stage: &Stage, login: &str) -> User {
    let made = stage.make_user(login).await;
    let word = |key: &str| made[key].as_str().unwrap().to_owned();
    User::new(
        stage.bases()[0].clone(),
        word("user_id"),
        word("login"),
        word("password"),
        word("token"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_replicas_stay_ready_and_deliver_messages() {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    let people = users(&stage, &[0, 1]).await;
    let chat = people[0].private_chat(&people[1]).await;
    let mut socket = Socket::live(&people[1]).await;
    for trouble in ["paused", "down"] {
        match trouble {
            "paused" => drop(stage.redis.command::<String>(&["CLIENT", "PAUSE", "4000"]).await),
            _ => stage.redis.kill(),
        }

        for round in 0..8 {
            let (text, start) = (format!("{trouble} {round}"), Instant::now());
            assert_eq!(send(&people[0], &chat, &text).await, 201);
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{text}: taken in {:?}",
                start.elapsed()
            );

            let took = received(&mut socket, &text).await;
            assert!(took < Duration::from_secs(9), "{text}: {took:?}");
            for user in &people {
                assert_eq!(user.get("/readyz").await.status, 200, "{trouble}");
            }
        }
    }

    stage.redis.restart().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(send(&people[0], &chat, "back").await, 201);
    assert!(received(&mut socket, "back").await < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_replica_that_redis_disconnects_for_its_backlog_misses_nothing() {
    let stage = Stage::set(2, &StageOptions::default()).await;
    let limit = "pubsub 65536 65536 0";
    let _: String =
        stage.redis.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]).await;
    let herd = Clients::of(&stage, &stage.bases(), (2, 1), |number| number).await;
    let chat = herd.community.private(0, 1).await.unwrap();
    stage.replicas[1].signal("-STOP");

    // More bytes than the limit and the system's socket buffers hold.
    let (count, filler) = (3_000, "~".repeat(4_000));
    for number in 1..=count {
        let sent =
            herd.community.actors[0].send(0, &chat, &format!("{number} {filler}"), None).await;
        assert!(sent.is_ok(), "{sent:?}");
    }

    let stats: String = stage.redis.command(&["INFO", "stats"]).await;
    let cut = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("client_output_buffer_limit_disconnections:"));
    assert_ne!(cut, Some("0"), "Redis disconnected the replica");
    stage.replicas[1].signal("-CONT");
    herd.must_be_clean().await;
}

/// Users with connected devices.
pub struct Clients {
    pub community: Community,
    devices: Vec<Device>,
    /// The work of the devices.
    watching: Work,
    /// The work of the users.
    pub work: Work,
}

impl Clients {
    /// Creates users, and connects the devices of each. Requests go to `bases`; `first` chooses the
    /// first replica of each device by its number.
    async fn of(
        stage: &Stage,
        bases: &[String],
        (users, devices): (usize, usize),
        first: impl Fn(usize) -> usize,
    ) -> Self {
        let accounts = workload::accounts_of_json_lines(&stage.make_users(users).await).unwrap();
        Self::with(accounts, bases, devices, first).await
    }

    /// Like [`Clients::of`], with these accounts.
    pub async fn with(
        accounts: Vec<Account>,
        bases: &[String],
        devices: usize,
        first: impl Fn(usize) -> usize,
    ) -> Self {
        let users = accounts.len();
        let history = History::new(Bounds::default());
        let community =
            Community::gather(bases, Duration::from_secs(8), &history, accounts).await.unwrap();
        let stop = CancellationToken::new();
        let watching = Work::new(0, Duration::ZERO, stop.clone());
        let start = |number: usize| {
            let actor = community.actors[number / devices].clone();
            let options = DeviceOptions { replica: first(number), ..DeviceOptions::default() };
            Device::start(actor, options, watching.tasks(), stop.clone())
        };

        let devices: Vec<Device> = (0..users * devices).map(start).collect();
        assert!(workload::wait_until_live(&devices, Duration::from_mins(1)).await);

        let work = Work::new(1, Duration::ZERO, CancellationToken::new());
        Self { community, devices, watching, work }
    }

    /// Ends the work and checks the record. The devices must have caught up within [`HEAL`].
    pub async fn end(self) -> (Record, Report) {
        self.work.finish().await;
        let history = self.community.actors[0].history().clone();
        let healed_us = history.now_us();
        let log = workload::read_final_log(&self.community.actors).await.unwrap();
        let heal = workload::until_caught_up(&self.devices, &log, healed_us, HEAL).await;
        self.watching.finish().await;

        let record = history.take();
        let limits = Limits { healed_us: Some(healed_us), heal, ..Limits::default() };
        let report =
            check(&Evidence { record: &record, log: &log, secrets: &[], exposed: &[], limits });
        (record, report)
    }

    async fn must_be_clean(self) {
        let (_, report) = self.end().await;
        assert!(report.is_clean(), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_a_wrong_clock_follows_the_databases_clock() {
    let (dir, database) = (tempfile::tempdir().unwrap(), Database::create(Backend::Postgres).await);
    let right = Clock::system().now();
    for off in [right.plus(Duration::from_hours(1)), right.minus(Duration::from_hours(1))] {
        let clock = Clock::system();
        clock.follow(off);
        let config = Config::resolve(settings(dir.path(), database.url()), None).unwrap();
        let server = Server::start(config, clock.clone()).await.unwrap();
        let difference = clock.now().as_ms() - Clock::system().now().as_ms();
        assert!(difference.abs() < 1_000, "{difference} ms");
        server.stop().await;
    }
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_users_of_a_killed_replica_are_shown_offline_within_twenty_seconds() {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    let people = users(&stage, &[0, 0, 1]).await;
    let [watcher, neighbour, lost] = people.as_slice() else { panic!("three were made") };
    watcher.group(&[neighbour, lost]).await;

    let (_near, _far) = (Socket::live(neighbour).await, Socket::live(lost).await);
    let mut socket = Socket::live(watcher).await;

    // The other replicas see a new replica's users only once they list its lease and its hash is
    // complete.
    eventually("both are shown online", async || {
        let users = [&neighbour.id, &lost.id];
        socket.send(json!({ "type": "watch_presence", "user_ids": users, "id": "w" })).await;
        let mut frames = socket.until("ack").await;
        frames.retain(|frame| frame["type"] == "presence");
        let online = |user: &User| {
            let latest = frames.iter().rfind(|frame| frame["user_id"] == *user.id);
            latest.unwrap()["online"] == true
        };
        online(neighbour) && online(lost)
    })
    .await;
    stage.replicas[1].kill().await;

    let start = Instant::now();
    loop {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the killed replica's user stays online"
        );
        socket.send(json!({ "type": "ping" })).await;
        tokio::time::sleep(Duration::from_millis(200)).await;

        while let Some(frame) = socket.next_now().await {
            if frame["type"] == "presence" {
                assert_eq!((&frame["user_id"], &frame["online"]), (&json!(lost.id), &json!(false)));
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_is_closed_at_its_outbox_bound_and_gets_no_gap() {
    /// More of the longest messages than an outbox and the system's socket buffers hold.
    const MANY: i64 = 700;

    let stage = Stage::set(1, &StageOptions::default()).await;
    let people = users(&stage, &[0, 0]).await;
    let chat = people[0].private_chat(&people[1]).await;
    let mut socket = Socket::narrow(&people[1]).await;
    socket.send(json!({ "type": "sync" })).await;
    socket.until("synced").await;

    let filler = "🐢".repeat(4_000);
    for number in 0..MANY {
        assert_eq!(send(&people[0], &chat, &format!("{number} {filler}")).await, 201);
    }

    let (mut got, mut last) = (0, 1);
    for _ in 0..2 {
        while let Some(message) = socket.next_raw_in(Duration::from_secs(3)).await {
            if let Message::Text(text) = message {
                let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                last += 1;
                assert_eq!(frame["rev"], last, "no gap");
                got += 1;
            }
        }
        // A message after a gap would show the gap.
        assert_eq!(send(&people[0], &chat, "one more").await, 201);
    }

    assert!(got < MANY, "the server kept {got} messages for the client");
}
