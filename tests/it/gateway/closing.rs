//! Heartbeats, slow consumers, and the stop of a server.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use starling::config::{Config, Settings};
use starling_loadtest::actor::{Account, Actor};
use starling_loadtest::client::Http;
use starling_loadtest::device::{Device, DeviceOptions};
use starling_loadtest::history::{Bounds, History};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::{Backend, Mode, Proxy, Socket, TestServer, everywhere};

// Not on a fleet: the tests' load balancer would read what the slow client does not.
mod slowly {
    crate::support::on_both_databases!(a_slow_consumer_is_closed_and_resumes_without_loss);
    use super::a_slow_consumer_is_closed_and_resumes_without_loss;
}
everywhere!(
    a_websocket_ping_is_answered,
    a_client_that_closes_is_answered,
    a_stopping_server_sends_reconnect_and_closes_with_1012,
    connecting_to_a_stopping_server_does_not_delay_its_stop,
);

async fn a_websocket_ping_is_answered(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;
    for payload in [Vec::new(), b"are you there?".to_vec(), vec![7; 125]] {
        socket.send_raw(Message::Ping(payload.clone().into())).await;
        assert_eq!(socket.next_raw().await, Some(Message::Pong(payload.into())));
    }
}

async fn a_client_that_closes_is_answered(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;
    socket.send_raw(Message::Close(None)).await;
    let start = Instant::now();
    while socket.next_raw().await.is_some() {}
    assert!(start.elapsed() < Duration::from_secs(2));
}

async fn a_slow_consumer_is_closed_and_resumes_without_loss(server: TestServer) {
    const SENDS: i64 = 450;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;

    let mut slow = Socket::narrow(&bob).await;
    slow.send(json!({ "type": "sync", "chats": { &chat: 1 } })).await;
    slow.expect("synced").await;

    let mut other = Socket::live(&bob).await;
    let mut sender = Socket::connect(&ada).await;
    let text = "\u{1f600}".repeat(4096);

    let sending = async {
        for _ in 0..SENDS / 10 {
            for _ in 0..10 {
                sender.send(json!({ "type": "send_message", "chat_id": chat, "text": text })).await;
            }
            for _ in 0..10 {
                sender.expect("ack").await;
            }
        }
    };

    // Meanwhile, a connection that reads gets every message.
    let reading = async {
        for rev in 2..=SENDS + 1 {
            assert_eq!(other.expect("new_message").await["rev"], rev);
        }
    };
    tokio::join!(sending, reading);

    let mut last = 1;
    let code = loop {
        match slow.next_raw().await {
            Some(Message::Text(frame)) => {
                let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
                assert_eq!(frame["rev"], last + 1, "the frames are in order, without a gap");
                last += 1;
            }
            Some(Message::Close(Some(close))) => break u16::from(close.code),
            // The buffers were so full that the close frame did not fit.
            None => break 0,
            Some(_) => {}
        }
    };

    assert!(code == 4413 || code == 0, "{code}");
    assert!(last < SENDS + 1, "it was closed before it had everything");

    let (mut back, replay) = Socket::resumed(&bob, json!({ &chat: last })).await;
    let revs: Vec<i64> = replay.iter().filter_map(|frame| frame["rev"].as_i64()).collect();
    assert_eq!(revs, (last + 1..=SENDS + 1).collect::<Vec<_>>());

    ada.say(&chat, "welcome back").await;
    assert_eq!(back.expect("new_message").await["rev"], SENDS + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_for_two_intervals_closes_with_4408_whatever_is_sent_to_the_client() {
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.heartbeat_interval_ms = Some(500))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;

    let mut unsynced = Socket::connect(&ada).await;
    let mut silent = Socket::live(&ada).await;
    let start = Instant::now();
    let talking = async {
        for _ in 0..8 {
            bob.say(&chat, "are you there?").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };

    let ((), code) = tokio::join!(talking, silent.close_code());
    assert_eq!(code, 4408);
    assert!(
        (Duration::from_millis(900)..Duration::from_millis(2500)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );

    assert_eq!(unsynced.close_code().await, 4408);
    server.stop().await;
}

/// All packets are lost in both directions, those that end the connection too. With the default
/// interval, two intervals are a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_network_is_detected_within_two_intervals_on_both_sides() {
    const INTERVAL: Duration = Duration::from_secs(1);
    let defaults = Config::resolve(Settings::default(), None).unwrap();
    assert!(defaults.limits.heartbeat_interval * 2 <= Duration::from_mins(1));

    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.heartbeat_interval_ms = Some(1000))
            .await;
    let ada = server.user().await;

    let proxy = Proxy::to(&server.address().to_string()).await;
    let http =
        Http::new(&[format!("http://{}", proxy.address()), server.base()], INTERVAL * 2).unwrap();
    let account =
        Account { user_id: ada.id.clone(), token: ada.token.clone(), ..Account::default() };
    let actor = Actor::resolve(http, History::new(Bounds::default()), account).await.unwrap();

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let device = Device::start(actor, DeviceOptions::default(), &tasks, stop.clone());
    assert!(device.until_live(INTERVAL * 5).await);

    // Heartbeats keep the connection open.
    tokio::time::sleep(INTERVAL * 5 / 2).await;
    assert_eq!((device.status().connections, server.connections().await), (1, 1));

    proxy.set(Mode::BlackHole);
    let start = Instant::now();

    // The server closes the old connection while the device opens a new one.
    let (mut noticed, mut released) = (None, None);
    while (noticed.is_none() || released.is_none()) && start.elapsed() < INTERVAL * 8 {
        let (status, connections) = (device.status(), server.connections().await);
        let back = status.connections == 2 && status.live;
        noticed = noticed.or(back.then(|| start.elapsed()));
        let gone = if back { connections == 1 } else { connections == 0 };
        released = released.or(gone.then(|| start.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let in_time = |at: Option<Duration>| at.is_some_and(|at| at < INTERVAL * 5 / 2);
    assert!(in_time(noticed) && in_time(released), "{noticed:?} {released:?}");

    stop.cancel();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_keep_a_connection_open() {
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.heartbeat_interval_ms = Some(500))
            .await;
    let ada = server.user().await;
    let (mut first, mut second) = (Socket::live(&ada).await, Socket::live(&ada).await);

    for _ in 0..8 {
        first.ping().await;
        second.send_raw(Message::Ping(Vec::new().into())).await;
        assert!(matches!(second.next_raw().await, Some(Message::Pong(_))));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }

    server.stop().await;
}

async fn a_stopping_server_sends_reconnect_and_closes_with_1012(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let mut sockets =
        [Socket::live(&ada).await, Socket::live(&bob).await, Socket::connect(&bob).await];
    let (mut unauthenticated, _) = Socket::open(Socket::request(&ada)).await.unwrap();

    let start = Instant::now();
    let stopping = server.stop();
    let closing = join_all(sockets.iter_mut().map(async |socket| {
        let frame = socket.expect("reconnect").await;
        assert!(frame["after_ms"].is_u64(), "{frame}");
        assert_eq!(socket.close_code().await, 1012);
    }));

    let ((), _, code) = tokio::join!(stopping, closing, unauthenticated.close_code());
    assert_eq!(code, 1012, "a connection that has not authenticated is closed, too");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(Socket::open(Socket::request(&ada)).await.is_err());
}

async fn connecting_to_a_stopping_server_does_not_delay_its_stop(server: TestServer) {
    let ada = server.user().await;
    let connecting = join_all((0..8).map(async |number| {
        tokio::time::sleep(Duration::from_millis(number * 5)).await;
        if let Ok((mut socket, _)) = Socket::open(Socket::authenticated(&ada)).await {
            assert_eq!(socket.close_code().await, 1012);
        }
    }));

    let stopping = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        server.stop().await;
        start.elapsed()
    };

    let (_, took) = tokio::join!(connecting, stopping);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_spread_over_the_drain() {
    let server = TestServer::with(Backend::Sqlite, |settings| settings.drain_ms = Some(1000)).await;
    let ada = server.user().await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(Socket::live(&ada).await);
    }

    let start = Instant::now();
    let notices = sockets.iter_mut().map(async |socket| {
        let after_ms = socket.expect("reconnect").await["after_ms"].as_u64().unwrap();
        let at = start.elapsed();
        assert_eq!(socket.close_code().await, 1012);
        (at, after_ms)
    });

    let (mut notices, ()) = tokio::join!(join_all(notices), server.stop());
    notices.sort_unstable();
    assert!(notices.iter().all(|(_, after_ms)| *after_ms <= 1000), "{notices:?}");
    for pair in notices.windows(2) {
        assert!(
            pair[1].0 > pair[0].0 + Duration::from_millis(50),
            "one after the other: {notices:?}"
        );
    }
}
