//! Postgres that is slow, silent, cut off, or changed while the server runs. Every call is answered
//! in time, connections in doubt are closed, and no acknowledged change is lost or made twice.

mod connections;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde_json::json;
use sqlx::PgConnection;

use crate::outages::{ANSWER_MAX, abort, send};
use crate::support::{
    Answer, Backend, Mode, Proxy, Socket, TestServer, User, execute, postgres_url,
};

/// How long the server may take to recover after the network has recovered.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// A server that reaches its database through a proxy.
async fn behind_proxy(connections_max: u32) -> (TestServer, Proxy) {
    let proxy = Proxy::to(&Proxy::target_of(&postgres_url())).await;
    let server = TestServer::with(Backend::Postgres, |settings| {
        settings.database_url = settings.database_url.as_deref().map(|url| proxy.in_url(url));
        settings.database_connections_max = Some(connections_max);
    })
    .await;
    (server, proxy)
}

/// The Postgres sessions of the server.
async fn sessions(db: &mut PgConnection) -> BTreeSet<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'starling'
                 AND pid <> pg_backend_pid()";
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap().into_iter().collect()
}

/// Whether a call succeeded, and how long it took. Fails unless the answer is a success or a 503
/// that may be retried.
async fn outcome(call: impl Future<Output = Answer>) -> (bool, Duration) {
    let start = Instant::now();
    let answer = call.await;
    let fine = [200, 201, 204].contains(&answer.status);
    assert!(
        fine || answer.status == 503 && answer.body["code"] == "unavailable",
        "{}: {}",
        answer.status,
        answer.body
    );
    (fine, start.elapsed())
}

/// One call of each kind: reads, changes, a login.
fn calls<'a>(
    ada: &'a User,
    bob: &'a User,
    chat: &'a str,
    key: &'a str,
) -> Vec<BoxFuture<'a, (bool, Duration)>> {
    let login = json!({ "login": ada.login, "password": ada.password });
    vec![
        outcome(async move { bob.get("/chats").await }).boxed(),
        outcome(async move { bob.get(&format!("/chats/{chat}/messages")).await }).boxed(),
        outcome(async move { bob.get(&format!("/chats/{chat}/changes?after=0")).await }).boxed(),
        outcome(async move { bob.get("/users").await }).boxed(),
        outcome(async move { bob.patch("/users/me", json!({ "name": key })).await }).boxed(),
        outcome(async move {
            bob.put(&format!("/chats/{chat}/read"), json!({ "message_id": 1 })).await
        })
        .boxed(),
        outcome(async move { ada.post("/sessions", login).await }).boxed(),
        outcome(async move { send(ada, chat, key).await }).boxed(),
        outcome(async move { send(bob, chat, key).await }).boxed(),
    ]
}

/// One frame of each kind that gets an answer.
async fn ask_all(socket: &mut Socket, chat: &str, key: &str) -> Vec<(bool, Duration)> {
    let frames = [
        json!({
            "type": "send_message", "chat_id": chat, "text": key, "client_id": format!("ws-{key}")
        }),
        json!({ "type": "edit_message", "chat_id": chat, "message_id": 1, "text": key }),
        json!({ "type": "read", "chat_id": chat, "message_id": 1 }),
    ];

    let mut outcomes = Vec::new();
    for frame in frames {
        let start = Instant::now();
        let answer = socket.ask(frame).await;
        let fine = answer["type"] == "ack";
        assert!(fine || answer["code"] == "unavailable", "{answer}");
        outcomes.push((fine, start.elapsed()));
    }
    outcomes
}

/// Repeats every call and frame until all succeed. Fails if that takes longer than
/// [`RECOVERY_MAX`].
async fn recovered(ada: &User, bob: &User, chat: &str, socket: &mut Socket, since: Instant) {
    loop {
        let all = join_all(calls(ada, bob, chat, "after")).await;
        let frames = ask_all(socket, chat, "after").await;
        let ready = outcome(bob.get("/readyz")).await.0;
        assert!(since.elapsed() < RECOVERY_MAX, "the server recovers in time: {all:?} {frames:?}");

        if ready && all.iter().chain(&frames).all(|(fine, _)| *fine) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until these sessions have ended. Fails if that takes longer than [`RECOVERY_MAX`].
async fn are_closed(db: &mut PgConnection, old: BTreeSet<i32>, since: Instant) {
    let mut left = old;
    while !left.is_empty() {
        assert!(since.elapsed() < RECOVERY_MAX, "every half-open connection is closed: {left:?}");
        left = sessions(db).await.intersection(&left).copied().collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_black_hole_every_call_is_answered_in_5_s_and_the_server_recovers_within_10_s() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut socket = Socket::live(&ada).await;
    let mut late = Socket::connect(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    for (fine, _) in join_all(calls(&ada, &bob, &chat, "before")).await {
        assert!(fine, "every call succeeds before the fault");
    }
    assert!(ask_all(&mut socket, &chat, "before").await.iter().all(|(fine, _)| *fine));

    let mut db = server.postgres().await;
    let old = sessions(&mut db).await;
    proxy.set(Mode::BlackHole);
    let dark = Instant::now();

    // Calls keep coming. The first ones get half-open connections, the later ones get none.
    let mut number = 0;
    let mut waves = FuturesUnordered::new();

    let framing = async {
        let start = Instant::now();
        late.send(json!({ "type": "sync", "id": "s" })).await;
        let refused = late.until("error").await;
        assert_eq!(refused.last().unwrap()["code"], "unavailable");

        let mut outcomes = vec![(false, start.elapsed())];
        while dark.elapsed() < Duration::from_secs(6) {
            let key = format!("dark-{}", outcomes.len());
            outcomes.extend(ask_all(&mut socket, &chat, &key).await);
        }
        outcomes
    };

    let asking = async {
        while dark.elapsed() < Duration::from_secs(8) {
            number += 1;
            let (ada, bob, chat) = (&ada, &bob, &chat);
            waves.push(
                async move { join_all(calls(ada, bob, chat, &format!("dark-{number}"))).await },
            );
            bob.get("/livez").await.expect(200);

            // The probe shows the result of the latest ping. A ping is made each second and may
            // take two.
            let (ready, took) = outcome(bob.get("/readyz")).await;
            assert!(!ready || dark.elapsed() < Duration::from_secs(4), "unready in time");
            assert!(took < Duration::from_secs(1), "{took:?}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }

        let mut all = Vec::new();
        while let Some(outcomes) = waves.next().await {
            all.extend(outcomes);
        }
        all
    };

    let (of_frames, of_calls) = tokio::join!(framing, asking);
    assert!(of_calls.len() > 100 && of_frames.len() > 3, "{} {}", of_calls.len(), of_frames.len());
    for (fine, took) in of_calls.into_iter().chain(of_frames) {
        assert!(!fine, "there is no database");
        assert!(took < ANSWER_MAX, "{took:?}");
    }

    proxy.set(Mode::Pass);
    let mended = Instant::now();
    recovered(&ada, &bob, &chat, &mut socket, mended).await;

    // The pool has lost no permit: more calls than it has connections succeed at once.
    let start = Instant::now();
    for (fine, _) in join_all((0..8).flat_map(|_| calls(&ada, &bob, &chat, "after"))).await {
        assert!(fine);
    }
    assert!(start.elapsed() < ANSWER_MAX, "{:?}", start.elapsed());

    are_closed(&mut db, old, mended).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_aborted_requests_interrupt_no_statement_and_lose_no_connection() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(3))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    join_all((0..30).map(|_| bob.get("/chats"))).await;

    let mut db = server.postgres().await;
    let before = sessions(&mut db).await;
    for round in 0..67 {
        join_all((0..30).map(|n| abort(&ada, &bob, &chat, round * 30 + n))).await;
    }

    let start = Instant::now();
    bob.get("/chats").await.expect(200);
    send(&ada, &chat, "the end").await.expect(201);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(sessions(&mut db).await, before, "no connection was lost or replaced");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_locked_for_10_s_is_503_only_for_requests_that_need_it() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "before").await.expect(201);

    let mut db = server.postgres().await;
    let before = sessions(&mut db).await;
    let mut holder = server.postgres().await;
    execute(&mut holder, "BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await;

    let start = Instant::now();
    let locked = || start.elapsed() < Duration::from_secs(10);
    let needing = async {
        let mut keys = Vec::new();
        while locked() {
            let key = format!("locked-{}", keys.len());
            let path = format!("/chats/{chat}/messages");
            for (fine, took) in join_all([
                outcome(send(&ada, &chat, &key)).boxed(),
                outcome(bob.get(&path)).boxed(),
            ])
            .await
            {
                assert!(!fine || !locked(), "no call gets past the lock");
                assert!(took < ANSWER_MAX, "{took:?}");
            }
            keys.push(key);
        }
        keys
    };

    let others = async {
        while locked() {
            let (fine, took) = outcome(bob.get("/chats")).await;
            assert!(fine && took < Duration::from_secs(1), "{took:?}");
            bob.get("/readyz").await.expect(200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        execute(&mut holder, "ROLLBACK").await;
    };

    let (keys, ()) = tokio::join!(needing, others);
    for key in &keys {
        // The last send before the lock ended may have succeeded, so 200 is right too.
        assert!(outcome(send(&ada, &chat, key)).await.0);
    }

    let texts = bob.texts(&chat, "?after=0").await;
    assert_eq!(texts[0], "before");
    assert_eq!(texts[1..].iter().collect::<BTreeSet<_>>(), keys.iter().collect(), "each once");
    assert_eq!(texts.len(), keys.len() + 1);
    assert!(
        sessions(&mut db).await.is_superset(&before),
        "Postgres reports a slow statement, so the connection is kept"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_exhausted_does_not_make_the_replica_unready() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let bob = server.user().await;
    bob.get("/chats").await.expect(200);

    let mut holder = server.postgres().await;
    execute(&mut holder, "BEGIN; LOCK TABLE chats IN ACCESS EXCLUSIVE MODE").await;

    let stuck = join_all((0..8).map(|_| outcome(bob.get("/chats"))));
    let probing = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let start = Instant::now();
            bob.get("/readyz").await.expect(200);
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    };

    let (stuck, ()) = tokio::join!(stuck, probing);
    assert!(stuck.iter().all(|(fine, _)| !fine));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_commit_was_not_answered_is_503_and_a_retry_finds_the_message() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);

    let mut socket = Socket::live(&ada).await;
    for n in 0..5 {
        let key = format!("by-http-{n}");
        proxy.set(Mode::CutAnswerTo(key.clone().into_bytes()));

        let lost = send(&ada, &chat, &key).await;
        lost.refused(503, "unavailable");
        assert_eq!(proxy.mode(), Mode::Pass, "the answer was cut off");

        let again = send(&ada, &chat, &key).await;
        assert!(again.status == 200 || again.status == 201, "{}", again.body);

        let key = format!("by-frame-{n}");
        proxy.set(Mode::CutAnswerTo(key.clone().into_bytes()));

        let frame =
            json!({ "type": "send_message", "chat_id": chat, "text": key, "client_id": key });
        assert_eq!(socket.ask(frame.clone()).await["code"], "unavailable");
        assert_eq!(socket.ask(frame).await["type"], "ack");
    }

    let expected: Vec<String> = std::iter::once("first".to_owned())
        .chain((0..5).flat_map(|n| [format!("by-http-{n}"), format!("by-frame-{n}")]))
        .collect();
    assert_eq!(bob.texts(&chat, "?after=0").await, expected, "each once, in order");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_changes_its_type_fails_almost_no_call() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut db = server.postgres().await;
    let done = tokio::sync::Notify::new();

    let altering = async {
        for round in 0..6 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let to = if round % 2 == 0 { "varchar(20000)" } else { "text" };
            execute(&mut db, &format!("ALTER TABLE messages ALTER COLUMN text TYPE {to}")).await;
            execute(&mut db, &format!("ALTER TABLE users ALTER COLUMN name TYPE {to}")).await;
            execute(&mut db, &format!("ALTER TABLE chats ALTER COLUMN last_text TYPE {to}")).await;
        }
        done.notify_waiters();
    };

    let work = async |number: usize| {
        let finished = done.notified();
        tokio::pin!(finished);

        let (mut all, mut refused, mut sent) = (0, 0, 0);
        while finished.as_mut().now_or_never().is_none() {
            let key = format!("{number}-{sent}");
            for (fine, _) in [
                outcome(bob.get("/chats")).await,
                outcome(bob.get(&format!("/chats/{chat}/messages"))).await,
                outcome(bob.get("/users")).await,
            ] {
                refused += usize::from(!fine);
                all += 1;
            }
            sent += usize::from(outcome(send(&ada, &chat, &key)).await.0);
        }
        (all, refused, sent)
    };

    let (counts, ()) = tokio::join!(join_all((0..3).map(work)), altering);
    let (mut all, mut refused, mut sent) = (0, 0, 0);
    for (of_all, of_refused, of_sent) in counts {
        (all, refused, sent) = (all + of_all, refused + of_refused, sent + of_sent);
    }

    assert!(all > 50 && sent > 10, "{all} {sent}");
    assert!(refused * 50 <= all, "at most 2 % of the calls fail: {refused} of {all}");
    assert_eq!(bob.get(&format!("/chats/{chat}")).await.expect(200)["last_message_id"], sent);
    server.stop().await;
}

/// An open transaction of another process has taken the next message id. Later messages of the chat
/// wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_delays_its_chat_and_leaves_no_gap() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);

    let mut socket = Socket::live(&bob).await;
    let mut db = server.postgres().await;
    let take_id = format!(
        "UPDATE chats SET rev = rev + 1, last_message_id = last_message_id + 1 WHERE id = '{chat}'"
    );
    let insert = format!(
        "INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, sent_at_ms)
         SELECT id, last_message_id, rev, rev, '{}', 'text', 'by another', 0 FROM chats
         WHERE id = '{chat}'",
        ada.id
    );

    for (round, (end, texts)) in
        [("ROLLBACK", &["0"][..]), ("COMMIT", &["by another", "1"])].into_iter().enumerate()
    {
        execute(&mut db, "BEGIN").await;
        execute(&mut db, &take_id).await;

        let holding = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let shown =
                    bob.get(&format!("/chats/{chat}/changes?after_rev=1")).await.expect(200);
                assert_eq!(shown["rev"], round + 2, "no reader sees a later rev: {shown}");
                socket.expect_silence().await;
            }
            execute(&mut db, &insert).await;
            execute(&mut db, end).await;
        };

        // Retries with the same client_id after a 503, as a client does.
        let key = round.to_string();
        let sending = async { while !outcome(send(&ada, &chat, &key)).await.0 {} };
        tokio::join!(sending, holding);

        for text in texts {
            assert_eq!(
                socket.expect("new_message").await["message"]["text"],
                *text,
                "in the order of their ids"
            );
        }
    }

    let log = bob.get(&format!("/chats/{chat}/messages")).await.expect(200);
    let id_and_rev = |message: &serde_json::Value| {
        (message["id"].as_i64().unwrap(), message["rev"].as_i64().unwrap())
    };
    let log: Vec<(i64, i64)> = log["messages"].as_array().unwrap().iter().map(id_and_rev).collect();
    assert_eq!(log, [(1, 2), (2, 3), (3, 4), (4, 5)]);
    server.stop().await;
}
