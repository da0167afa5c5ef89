//! The budgets of one user: rates of reads and arrivals, frames that work on the database at once,
//! and the queue for database connections.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use starling::config::Switch;
use starling::model::UserId;
use starling::model::limits::{ARRIVALS, READS, STORE_WAITING_MAX};
use tokio_tungstenite::tungstenite;

use super::locks::{hold, release};
use super::raw::metrics;
use crate::support::{
    Answer, Backend, Socket, TestServer, User, eventually, execute, lock_waits,
    on_both_databases_by, run, run_with,
};

on_both_databases_by!(
    super::limited,
    reads_beyond_the_budget_are_refused_without_a_statement,
    arrivals_beyond_the_budget_are_refused_and_other_users_arrive,
    a_sync_beyond_the_budget_is_refused_and_may_be_retried,
    a_greedy_account_is_refused_and_the_sends_of_others_succeed,
);

mod typing {
    use super::typing_is_forwarded_once_in_two_seconds_per_user_and_chat;
    crate::support::on_both_databases!(typing_is_forwarded_once_in_two_seconds_per_user_and_chat);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_is_forwarded_once_in_two_seconds_by_two_replicas_together() {
    run(Backend::Fleet, typing_is_forwarded_once_in_two_seconds_per_user_and_chat).await;
}

/// Runs a test on a server with rate limits on.
async fn limited<F: Future<Output = ()>>(backend: Backend, test: impl FnOnce(TestServer) -> F) {
    run_with(backend, |settings| settings.rate_limits = Some(Switch::On), test).await;
}

/// Fails unless the answer is a refusal by rate that names the time of a retry.
#[track_caller]
fn too_many(answer: &Answer) {
    answer.refused(429, "rate_limited");
    let seconds: u64 = answer.header("retry-after").expect("a retry-after header").parse().unwrap();
    assert!(seconds >= 1);
}

/// The sum of a metric over its labels.
async fn metric(server: &TestServer, name: &str) -> u64 {
    let text = metrics(server).await;
    let values =
        text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
    values.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

async fn reads_beyond_the_budget_are_refused_without_a_statement(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "hello").await;
    let mut socket = Socket::live(&bob).await;

    let burst = READS.burst as usize;
    let paths = ["/chats".to_owned(), format!("/chats/{chat}/messages"), "/users/me".to_owned()];
    let mut answers = Vec::new();
    while answers.len() < burst + 200 || answers.iter().all(|answer: &Answer| answer.status == 200)
    {
        answers.extend(join_all((0..40).map(|n| bob.get(&paths[n % paths.len()]))).await);
        assert!(answers.len() < 20_000, "the budget ends");
    }

    let (done, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(
        done.len() >= burst && !refused.is_empty(),
        "{} done, {} refused",
        done.len(),
        refused.len()
    );
    refused.into_iter().for_each(too_many);

    // The budget refills meanwhile, so each check directly follows a refusal. Read markers share
    // the budget.
    let path = format!("/chats/{chat}/read");
    let marker = json!({ "message_id": 1 });
    let mut refused_for_nothing = 0;
    while refused_for_nothing < 20 {
        let before = server.store().statements();
        let answers = [
            bob.get("/chats").await,
            bob.put(&path, marker.clone()).await,
            bob.get("/users?query=u").await,
        ];
        if answers.iter().all(|answer| answer.status == 429) {
            answers.iter().for_each(too_many);
            assert_eq!(server.store().statements(), before, "a refusal runs no statement");
            refused_for_nothing += 1;
        }
    }

    let answers = join_all((0..10).map(|_| async { bob.get("/chats").await })).await;
    assert!(answers.iter().any(|answer| answer.status == 429));
    let read = json!({ "type": "read", "chat_id": chat, "message_id": 1 });
    let mut answer = socket.ask(read.clone()).await;
    while answer["type"] == "ack" {
        answer = socket.ask(read.clone()).await;
    }
    assert_eq!(answer["code"], "rate_limited", "{answer}");
    assert!(answer["retry_after_ms"].as_u64().unwrap() > 0, "{answer}");

    ada.get("/chats").await.expect(200);
    bob.say(&chat, "too many reads block no sends").await;
    server.advance(Duration::from_mins(1));
    bob.get("/chats").await.expect(200);
    assert_eq!(socket.ask(read).await["type"], "ack");
}

/// The status of a handshake, and whether a refusal names the time of a retry.
async fn handshake(user: &User) -> (u16, bool) {
    match Socket::open(Socket::authenticated(user)).await {
        Ok((socket, _)) => {
            socket.close().await;
            (101, false)
        }
        Err(tungstenite::Error::Http(response)) => {
            (response.status().as_u16(), response.headers().contains_key("retry-after"))
        }
        Err(error) => panic!("{error}"),
    }
}

async fn arrivals_beyond_the_budget_are_refused_and_other_users_arrive(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (mut arrived, mut refused) = (0, 0);
    while refused < 5 {
        match handshake(&ada).await {
            (101, _) => arrived += 1,
            (429, has_retry_after) => {
                assert!(has_retry_after);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        assert!(arrived < 5000, "the budget ends");
    }
    assert!(arrived >= ARRIVALS.burst, "{arrived}");

    // By a token in the first frame, the user is known only once the connection is open.
    let code = loop {
        let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
        socket.send(json!({ "type": "authenticate", "token": ada.token })).await;
        let code = tokio::time::timeout(Duration::from_secs(1), socket.close_code()).await;
        if let Ok(code) = code {
            break code;
        }
    };
    assert_eq!(code, 4429);

    Socket::live(&bob).await;
    server.advance(Duration::from_mins(2));
    Socket::live(&ada).await;
}

async fn a_sync_beyond_the_budget_is_refused_and_may_be_retried(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut socket = Socket::connect(&ada).await;
    let refused = loop {
        while handshake(&ada).await.0 == 101 {}
        let answer = socket.ask(json!({ "type": "sync" })).await;
        if answer["type"] == "error" {
            break answer;
        }

        // The refilled budget allowed this sync. Another connection tries.
        socket = loop {
            server.advance(Duration::from_millis(250));
            if handshake(&ada).await.0 == 101 {
                server.advance(Duration::from_millis(500));
                break Socket::connect(&ada).await;
            }
        };
    };
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0);

    server.advance(Duration::from_mins(1));
    socket.send(json!({ "type": "sync" })).await;
    socket.until("synced").await;
    bob.say(&chat, "hello").await;
    socket.expect("new_message").await;
}

async fn typing_is_forwarded_once_in_two_seconds_per_user_and_chat(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (chat, other) = (ada.private_chat(&bob).await, ada.group(&[&bob]).await);
    // On a fleet these are on different replicas.
    let mut devices = [Socket::live(&ada).await, Socket::live(&ada).await];
    let mut watcher = Socket::live(&bob).await;
    let typing = json!({ "type": "typing", "chat_id": chat });

    let typing_before = async |watcher: &mut Socket, text: &str| {
        ada.say(&chat, text).await;
        let mut count = 0;
        loop {
            let frame = watcher.next().await;
            match frame["type"].as_str().unwrap() {
                "typing" if frame["chat_id"] == json!(chat) => count += 1,
                "new_message" if frame["message"]["text"] == text => return count,
                _ => {}
            }
        }
    };

    for device in &mut devices {
        device.send(typing.clone()).await;
        // The answer comes after the frame before has been handled.
        device.ask(json!({ "type": "read", "chat_id": chat, "message_id": 0 })).await;
    }

    let before = server.store().statements();
    for _ in 0..50 {
        for device in &mut devices {
            device.send(typing.clone()).await;
        }
    }

    for device in &mut devices {
        device.ping().await;
    }
    let asked = server.store().statements() - before;
    assert!(asked < 10, "a hundred repetitions run no query: {asked} statements");

    watcher.expect("typing").await;
    assert_eq!(
        typing_before(&mut watcher, "first").await,
        0,
        "only one came, for both devices together"
    );

    devices[0].send(json!({ "type": "typing", "chat_id": other })).await;
    assert_eq!(
        watcher.expect("typing").await["chat_id"],
        json!(other),
        "each chat counts by itself"
    );
    server.advance(Duration::from_secs(3));
    devices[1].send(typing.clone()).await;
    watcher.expect("typing").await;
    assert_eq!(typing_before(&mut watcher, "second").await, 0);
}

/// The requests of a greedy client in one round.
async fn grab(greedy: &User, chat: &str, n: usize) -> Vec<u16> {
    let reads = [
        greedy.get("/chats").await.status,
        greedy.get(&format!("/chats/{chat}/messages")).await.status,
        greedy.put(&format!("/chats/{chat}/read"), json!({ "message_id": 1 })).await.status,
    ];
    let mut statuses = reads.to_vec();
    if n.is_multiple_of(4) {
        statuses.push(handshake(greedy).await.0);
    }
    statuses
}

async fn a_greedy_account_is_refused_and_the_sends_of_others_succeed(server: TestServer) {
    let (greedy, ada, bob) = (server.user().await, server.user().await, server.user().await);
    let (grabbed, chat) = (greedy.private_chat(&ada).await, ada.private_chat(&bob).await);
    greedy.say(&grabbed, "hello").await;
    let mut device = Socket::live(&greedy).await;

    let start = Instant::now();
    let before = server.store().statements();
    let over = tokio_util::sync::CancellationToken::new();
    let clients = join_all((0..30).map(|n| {
        let (greedy, grabbed, over) = (&greedy, &grabbed, over.clone());
        async move {
            let mut statuses = Vec::new();
            while !over.is_cancelled() {
                statuses.extend(grab(greedy, grabbed, n).await);
            }
            statuses
        }
    }));

    let frames = async {
        while !over.is_cancelled() {
            device.send(json!({ "type": "typing", "chat_id": grabbed })).await;
            let read = json!({ "type": "read", "chat_id": grabbed, "message_id": 1 });
            assert!(["ack", "error"].contains(&device.ask(read).await["type"].as_str().unwrap()));
        }
    };

    let others = async {
        let mut slowest = Duration::ZERO;
        for n in 0..60 {
            let sent = Instant::now();
            ada.say(&chat, &n.to_string()).await;
            slowest = slowest.max(sent.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        over.cancel();
        slowest
    };
    let (statuses, (), slowest) = tokio::join!(clients, frames, others);

    let statements = server.store().statements() - before;
    let seconds = start.elapsed().as_secs() + 1;
    let statuses = statuses.concat();
    assert!(statuses.iter().all(|status| [101, 200, 204, 429].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 429).count() > 50, "{}", statuses.len());
    // A read is at most two statements, an arrival four, a send of the others about ten on SQLite.
    let earned = |rate: starling::model::limits::Rate| {
        u64::from(rate.burst) + seconds * 1000 / u64::try_from(rate.every.as_millis()).unwrap()
    };
    let allowed = 2 * earned(READS) + 4 * earned(ARRIVALS) + 12 * 60 + 20 * seconds;
    assert!(statements < allowed, "{statements} statements in {seconds} s, at most {allowed}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let all = bob.texts(&chat, "?after=0&max=100").await;
    assert_eq!(all, (0..60).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn edit(chat: &str, n: usize) -> Value {
    json!({ "type": "edit_message", "chat_id": chat, "message_id": 1, "text": n.to_string() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_one_user_that_are_stuck_leave_connections_to_the_others() {
    let server = TestServer::start(Backend::Postgres).await;
    let (greedy, bob) = (server.user().await, server.user().await);
    let chat = greedy.group(&[]).await;
    greedy.say(&chat, "hello").await;
    bob.get("/chats").await.expect(200);
    let mut devices = [Socket::live(&greedy).await, Socket::live(&greedy).await];
    let waited_before = metric(&server, "starling_frames_waited_total").await;

    let holder = hold(&server, std::slice::from_ref(&chat)).await;
    for device in &mut devices {
        for n in 0..30 {
            device.send(edit(&chat, n)).await;
        }
    }

    eventually("frames wait", async || {
        metric(&server, "starling_frames_waited_total").await > waited_before
    })
    .await;
    let mut db = server.postgres().await;
    for _ in 0..10 {
        let start = Instant::now();
        bob.get("/chats").await.expect(200);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let stuck = lock_waits(&mut db).await;
        assert!(stuck <= 4, "{stuck} connections wait for one user's lock");
    }

    release(holder).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_gets_no_permit_in_time_is_refused_as_unavailable() {
    let server = TestServer::start(Backend::Postgres).await;
    let greedy = server.user().await;
    let (chat, other) = (greedy.group(&[]).await, greedy.group(&[]).await);
    greedy.say(&chat, "hello").await;
    let mut device = Socket::live(&greedy).await;

    let holder = hold(&server, std::slice::from_ref(&chat)).await;
    for n in 0..31 {
        device.send(edit(&chat, n)).await;
    }

    let start = Instant::now();
    let answer = device.ask(json!({ "type": "read", "chat_id": other, "message_id": 0 })).await;
    assert_eq!(answer["code"], "unavailable", "{answer}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());

    release(holder).await;
    loop {
        let answer = device.ask(json!({ "type": "read", "chat_id": other, "message_id": 0 })).await;
        if answer["type"] == "ack" {
            break;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_behind_frames_that_wait_for_permits_succeeds() {
    let server = TestServer::start(Backend::Postgres).await;
    let greedy = server.user().await;
    let chat = greedy.group(&[]).await;
    greedy.say(&chat, "hello").await;
    let mut device = Socket::connect(&greedy).await;

    let holder = hold(&server, std::slice::from_ref(&chat)).await;
    for n in 0..20 {
        device.send(edit(&chat, n)).await;
    }

    device.send(json!({ "type": "sync" })).await;
    // The connection works on the `sync` by now, and on no other frame before that is done.
    tokio::time::sleep(Duration::from_millis(300)).await;
    release(holder).await;
    device.until("synced").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_for_connections_refuses_the_newest_at_once() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let bob = server.user().await;
    bob.get("/chats").await.expect(200);

    let mut holder = server.postgres().await;
    execute(&mut holder, "BEGIN; LOCK TABLE chats IN ACCESS EXCLUSIVE MODE").await;
    let store = server.store();
    let user_id: UserId = bob.id.parse().unwrap();
    let refused_before = metric(&server, "starling_store_refused_total").await;

    let start = Instant::now();
    let reads = join_all((0..STORE_WAITING_MAX + 102).map(|_| async {
        let refused = store.chat_heads(user_id).await.expect_err("the table is locked");
        assert_eq!(refused.code.as_str(), "unavailable");
        assert!(refused.retry_after_ms.is_some());
        start.elapsed()
    }))
    .await;

    let at_once = reads.iter().filter(|took| **took < Duration::from_secs(1)).count();
    let expected = "two hold a connection, a bounded number waits, the rest is refused at once";
    assert_eq!(at_once, 100, "{expected}");
    // Other tests of this process may count here, too.
    assert!(metric(&server, "starling_store_refused_total").await >= refused_before + 100);

    execute(&mut holder, "ROLLBACK").await;
    eventually("reads succeed again", async || bob.get("/chats").await.status == 200).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resolved_and_ended_while_every_request_connection_is_taken() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let store = server.store();
    let user_id: UserId = bob.id.parse().unwrap();

    let mut holder = server.postgres().await;
    execute(&mut holder, "BEGIN; LOCK TABLE chats IN ACCESS EXCLUSIVE MODE").await;
    let stuck = join_all((0..40).map(|_| store.chat_heads(user_id)));
    let recognised = async {
        // Behind those that wait for a connection of requests.
        // Behind the reads that wait for a connection.
        let start = Instant::now();
        // No replica has cached this token yet.
        let listed = ada.get("/sessions").await.expect(200);
        assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1));
        ada.with_token("nonsense").get("/sessions").await.refused(401, "not_authenticated");
        let session: &Value = &listed["sessions"][0]["id"];
        ada.delete(&format!("/sessions/{}", session.as_str().unwrap())).await.expect(204);
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    };

    let (stuck, ()) = tokio::join!(stuck, recognised);
    assert!(stuck.iter().all(Result::is_err));
    execute(&mut holder, "ROLLBACK").await;
    server.stop().await;
}
