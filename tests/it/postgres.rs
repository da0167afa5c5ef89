//! Postgres that is slow, silent, cut off or changed under the server: every call is answered in
//! time, what is in doubt is closed, and nothing acknowledged is lost or done twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::outages::{ANSWER_MAX, abort, send};
use crate::support::{
    Answer, Backend, Mode, Proxy, Socket, TestServer, User, eventually, postgres_url,
};

/// How long until all is well again once the network is.
const HEAL_MAX: Duration = Duration::from_secs(10);

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

async fn direct(server: &TestServer) -> PgConnection {
    PgConnection::connect(&server.database_url().unwrap()).await.unwrap()
}

/// The sessions of the server in its database.
async fn sessions(db: &mut PgConnection) -> BTreeSet<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'starling' AND pid <> pg_backend_pid()";
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap().into_iter().collect()
}

async fn execute(db: &mut PgConnection, sql: &str) {
    db.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

/// What a call came to: fine, or to be done again; anything else fails the test. And how long it
/// took.
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
        json!({ "type": "send_message", "chat_id": chat, "text": key, "client_id": format!("ws-{key}") }),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_black_hole_every_call_is_answered_in_5_s_and_all_is_well_10_s_after_it() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut socket = Socket::live(&ada).await;
    let mut late = Socket::connect(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    for (fine, _) in join_all(calls(&ada, &bob, &chat, "before")).await {
        assert!(fine, "all is well before");
    }
    assert!(ask_all(&mut socket, &chat, "before").await.iter().all(|(fine, _)| *fine));
    let mut db = direct(&server).await;
    let old = sessions(&mut db).await;
    proxy.set(Mode::BlackHole);
    let dark = Instant::now();
    // Calls keep coming: those of the first wave find half-open connections, the later ones find
    // none.
    let mut number = 0;
    let mut waves = FuturesUnordered::new();
    let framing = async {
        let mut told = Vec::new();
        let start = Instant::now();
        late.send(json!({ "type": "sync", "id": "s" })).await;
        let refused = late.until("error").await;
        assert_eq!(refused.last().unwrap()["code"], "unavailable");
        told.push((false, start.elapsed()));
        while dark.elapsed() < Duration::from_secs(6) {
            told.extend(ask_all(&mut socket, &chat, &format!("dark-{}", told.len())).await);
        }
        told
    };
    let asking = async {
        while dark.elapsed() < Duration::from_secs(8) {
            number += 1;
            let (ada, bob, chat) = (&ada, &bob, &chat);
            waves.push(
                async move { join_all(calls(ada, bob, chat, &format!("dark-{number}"))).await },
            );
            bob.get("/livez").await.expect(200);
            // The probes show the latest ping: one a second, which may take two.
            let (ready, took) = outcome(bob.get("/readyz")).await;
            assert!(!ready || dark.elapsed() < Duration::from_secs(4), "unready in time");
            assert!(took < Duration::from_secs(1), "{took:?}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let mut told = Vec::new();
        while let Some(outcomes) = waves.next().await {
            told.extend(outcomes);
        }
        told
    };
    let (of_frames, of_calls) = tokio::join!(framing, asking);
    assert!(of_calls.len() > 100 && of_frames.len() > 3, "{} {}", of_calls.len(), of_frames.len());
    for (fine, took) in of_calls.into_iter().chain(of_frames) {
        assert!(!fine, "there is no database");
        assert!(took < ANSWER_MAX, "{took:?}");
    }
    proxy.set(Mode::Pass);
    let mended = Instant::now();
    loop {
        let all = join_all(calls(&ada, &bob, &chat, "after")).await;
        let frames = ask_all(&mut socket, &chat, "after").await;
        let ready = outcome(bob.get("/readyz")).await.0;
        if ready && all.iter().chain(&frames).all(|(fine, _)| *fine) {
            break;
        }
        assert!(mended.elapsed() < HEAL_MAX, "it is well again in time: {all:?} {frames:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(mended.elapsed() < HEAL_MAX, "{:?}", mended.elapsed());
    // The pool is whole: more at once than it has connections, all soon.
    let start = Instant::now();
    for (fine, _) in join_all((0..8).flat_map(|_| calls(&ada, &bob, &chat, "after"))).await {
        assert!(fine);
    }
    assert!(start.elapsed() < ANSWER_MAX, "{:?}", start.elapsed());
    let mut left = old.clone();
    while !left.is_empty() {
        assert!(
            mended.elapsed() < HEAL_MAX,
            "every connection that was half open is closed: {left:?} of {old:?}"
        );
        left = sessions(&mut db).await.intersection(&old).copied().collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_go_silent_under_load_are_given_up_and_their_places_are_free_again() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    let start = Instant::now();
    let silent_from = Duration::from_secs(1);
    let (ada, bob, chat, proxy) = (&ada, &bob, &chat, &proxy);
    let load = async |lane: usize| {
        let mut told = Vec::new();
        while start.elapsed() < silent_from + HEAL_MAX {
            let key = format!("{lane}-{}", told.len());
            let began = start.elapsed();
            let both = [
                outcome(send(ada, chat, &key)).await,
                outcome(bob.get(&format!("/chats/{chat}/messages"))).await,
            ];
            told.extend(both.map(|(fine, took)| (began, fine, took)));
        }
        told
    };
    let silencing = async {
        tokio::time::sleep(silent_from).await;
        // Those that are in the middle of something never hear of it; new connections are fine.
        proxy.set(Mode::Strand);
    };
    let (told, ()) = tokio::join!(join_all((0..8).map(load)), silencing);
    for (began, fine, took) in told.into_iter().flatten() {
        assert!(took < ANSWER_MAX, "{took:?}");
        assert!(fine || began < silent_from + ANSWER_MAX, "well again: {began:?}");
    }
    for (fine, took) in join_all((0..8).flat_map(|_| calls(ada, bob, chat, "after"))).await {
        assert!(fine && took < ANSWER_MAX, "{took:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_aborted_requests_break_off_no_statement_and_take_no_connection() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(3))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    join_all((0..30).map(|_| bob.get("/chats"))).await;
    let mut db = direct(&server).await;
    let before = sessions(&mut db).await;
    for round in 0..67 {
        join_all((0..30).map(|n| abort(&ada, &bob, &chat, round * 30 + n))).await;
    }
    let start = Instant::now();
    bob.get("/chats").await.expect(200);
    send(&ada, &chat, "the end").await.expect(201);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(
        sessions(&mut db).await,
        before,
        "the same connections as before: none was lost or replaced"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_locked_for_10_s_is_503_for_those_who_need_it_and_nothing_to_the_others() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "before").await.expect(201);
    let mut db = direct(&server).await;
    let before = sessions(&mut db).await;
    let mut holder = direct(&server).await;
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
                assert!(!fine || !locked(), "nobody gets past the lock");
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
        // 200: the last one may have got through.
        assert!(outcome(send(&ada, &chat, key)).await.0);
    }
    let texts = bob.texts(&chat, "?after=0").await;
    assert_eq!(texts[0], "before");
    assert_eq!(texts[1..].iter().collect::<BTreeSet<_>>(), keys.iter().collect(), "each once");
    assert_eq!(texts.len(), keys.len() + 1);
    assert!(
        sessions(&mut db).await.is_superset(&before),
        "a slow statement is told by Postgres: the line is good"
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
    let mut holder = direct(&server).await;
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
async fn a_send_whose_answer_from_the_database_was_lost_is_503_and_one_message_when_it_comes_again()
{
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
async fn a_change_whose_commit_was_not_answered_is_503_and_done() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    proxy.set(Mode::CutAnswerTo(b"COMMIT\0".to_vec()));
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Renamed" }))
        .await
        .refused(503, "unavailable");
    assert_eq!(proxy.mode(), Mode::Pass, "the answer was cut off");
    assert_eq!(bob.get(&format!("/chats/{chat}")).await.expect(200)["name"], "Renamed");
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Renamed" })).await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_in_the_middle_of_an_answer_is_503_once() {
    let (server, proxy) = behind_proxy(1).await;
    let bob = server.user().await;
    bob.get("/chats").await.expect(200);
    for bytes in [0, 1, 5, 20] {
        proxy.set(Mode::CutAfter(crate::support::Way::ToClient, bytes));
        let (fine, _) = outcome(bob.get("/chats")).await;
        assert!(!fine, "cut after {bytes} bytes");
        bob.get("/chats").await.expect(200);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_database_the_first_call_finds_out_for_all_connections() {
    let (server, proxy) = behind_proxy(6).await;
    let bob = server.user().await;
    join_all((0..60).map(|_| bob.get("/users"))).await;
    proxy.set(Mode::Refuse);
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.set(Mode::Pass);
    let mut failed = 0;
    for _ in 0..12 {
        let (fine, took) = outcome(bob.get("/users")).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        failed += u32::from(!fine);
    }
    assert!(failed <= 1, "one call finds the dead connections, not one each: {failed}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_changes_its_type_is_met_by_no_call() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut db = direct(&server).await;
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
    assert!(refused * 50 <= all, "next to nobody notices: {refused} of {all}");
    assert_eq!(bob.get(&format!("/chats/{chat}")).await.expect(200)["last_message_id"], sent);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_the_middle_of_a_transaction_keeps_the_connection_and_holds_no_lock() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    join_all((0..20).map(|_| bob.get("/chats"))).await;
    let mut db = direct(&server).await;
    let before = sessions(&mut db).await;
    for _ in 0..20 {
        // Found out under the chat's lock.
        let edit = json!({ "text": "mine" });
        eve.patch(&format!("/chats/{chat}/messages/1"), edit).await.refused(404, "chat_not_found");
        send(&ada, &chat, &format!("{}", rand::random::<u64>())).await.expect(201);
    }
    assert_eq!(sessions(&mut db).await, before);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'";
    eventually("nothing is left open", || async {
        let mut db = direct(&server).await;
        sqlx::query_scalar::<_, i64>(open).fetch_one(&mut db).await.unwrap() == 0
    })
    .await;
    server.stop().await;
}

/// A place was given out by a transaction that is still open: what comes later in the chat must
/// wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_stays_open_holds_its_chat_up_and_leaves_no_gap() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    let mut socket = Socket::live(&bob).await;
    let mut db = direct(&server).await;
    let place = format!(
        "UPDATE chats SET rev = rev + 1, last_message_id = last_message_id + 1 WHERE id = '{chat}'"
    );
    let fill = format!(
        "INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, sent_at_ms)
         SELECT id, last_message_id, rev, rev, '{}', 'text', 'by another', 0 FROM chats WHERE id = '{chat}'",
        ada.id
    );
    for (round, (end, texts)) in
        [("ROLLBACK", &["0"][..]), ("COMMIT", &["by another", "1"])].into_iter().enumerate()
    {
        execute(&mut db, "BEGIN").await;
        execute(&mut db, &place).await;
        let holding = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let shown =
                    bob.get(&format!("/chats/{chat}/changes?after_rev=1")).await.expect(200);
                assert_eq!(shown["rev"], round + 2, "nobody sees past it: {shown}");
                socket.expect_silence().await;
            }
            execute(&mut db, &fill).await;
            execute(&mut db, end).await;
        };
        // As a client does: again with the same key, if it was told that this takes too long.
        let key = round.to_string();
        let sending = async { while !outcome(send(&ada, &chat, &key)).await.0 {} };
        tokio::join!(sending, holding);
        for text in texts {
            assert_eq!(
                socket.expect("new_message").await["message"]["text"],
                *text,
                "in its order"
            );
        }
    }
    let log = bob.get(&format!("/chats/{chat}/messages")).await.expect(200);
    let place = |message: &serde_json::Value| {
        (message["id"].as_i64().unwrap(), message["rev"].as_i64().unwrap())
    };
    let places: Vec<(i64, i64)> = log["messages"].as_array().unwrap().iter().map(place).collect();
    assert_eq!(places, [(1, 2), (2, 3), (3, 4), (4, 5)]);
    server.stop().await;
}
