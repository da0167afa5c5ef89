//! The database is unavailable: requests get 503 with `Retry-After`, never 500, and the server
//! recovers by itself.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{Answer, Backend, Socket, TestServer, User, eventually, execute};

/// How long a request may take, whatever the database does.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The superuser's connection to another database of the same server.
async fn superuser(server: &TestServer) -> (PgConnection, String) {
    let url = server.database_url().unwrap();
    let (base, name) = url.rsplit_once('/').unwrap();
    (PgConnection::connect(&format!("{base}/postgres")).await.unwrap(), name.to_owned())
}

/// Sends `key` as text and `client_id`.
pub async fn send(user: &User, chat: &str, key: &str) -> Answer {
    user.post(&format!("/chats/{chat}/messages"), json!({ "text": key, "client_id": key })).await
}

/// Makes one of three requests and abandons it before the answer. `n` chooses the request and the
/// moment.
pub async fn abort(ada: &User, bob: &User, chat: &str, n: usize) {
    let work = async {
        match n % 3 {
            0 => drop(ada.get(&format!("/chats/{chat}/messages")).await),
            1 => drop(send(ada, chat, &format!("k{n}")).await),
            _ => drop(bob.get("/chats").await),
        }
    };
    let _ = tokio::time::timeout(Duration::from_micros(200 + (n as u64 % 40) * 150), work).await;
}

/// Whether the request succeeded. Fails unless the answer is a success or a retryable 503.
#[track_caller]
fn fine_or_unavailable(answer: &Answer) -> bool {
    if answer.status == 503 {
        let after: u64 =
            answer.header("retry-after").expect("a Retry-After header").parse().unwrap();
        assert!(
            (1..=30).contains(&after) && answer.body["code"] == "unavailable",
            "{}",
            answer.body
        );
        return false;
    }

    assert!([200, 201, 204].contains(&answer.status), "{}: {}", answer.status, answer.body);
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_cause_at_most_503_and_lose_no_acknowledged_message() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut db, name) = superuser(&server).await;
    let kill =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");

    let killing = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(80)).await;
            execute(&mut db, &kill).await;
        }
    };

    let work = async |number: usize| {
        let mut acknowledged = Vec::new();
        for n in 0..60 {
            let key = format!("{number}-{n}");
            let start = Instant::now();

            // Retries with the same client_id until an acknowledgement, as a client does.
            loop {
                let answer = send(&ada, &chat, &key).await;
                if fine_or_unavailable(&answer) {
                    acknowledged.push((answer.body["id"].as_i64().unwrap(), key));
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(10), "it recovers");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            fine_or_unavailable(&bob.get("/chats").await);
        }
        acknowledged
    };

    let (acknowledged, ()) = tokio::join!(join_all((0..3).map(work)), killing);

    // On a machine of any speed, this terminates idle connections too. The next call gets one.
    execute(&mut db, &kill).await;

    let (mut log, mut refused) = (Vec::<(i64, String)>::new(), 0);
    loop {
        let path = format!("/chats/{chat}/messages?after={}&max=100", log.len());
        let page = bob.get(&path).await;
        if !fine_or_unavailable(&page) {
            refused += 1;
            assert!(refused <= 3, "one call finds all dead connections");
            continue;
        }

        let page = page.body;
        let page = page["messages"].as_array().unwrap();
        if page.is_empty() {
            break;
        }

        log.extend(
            page.iter()
                .map(|it| (it["id"].as_i64().unwrap(), it["text"].as_str().unwrap().to_owned())),
        );
    }

    let mut acknowledged: Vec<(i64, String)> = acknowledged.into_iter().flatten().collect();
    acknowledged.sort();
    assert_eq!(log, acknowledged, "each once, at the id that was acknowledged");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_database_is_503_and_the_server_recovers() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut socket = Socket::live(&bob).await;
    send(&ada, &chat, "before").await.expect(201);
    socket.expect("new_message").await;

    let (mut db, name) = superuser(&server).await;
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE '{name}%'"
    );
    let closed = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false");
    let opened = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true");
    let gone = format!("ALTER DATABASE {name} RENAME TO {name}_away");
    let back = format!("ALTER DATABASE {name}_away RENAME TO {name}");

    for (round, (away, here)) in [(closed, opened), (gone, back)].into_iter().enumerate() {
        // A connection opened between the two statements would keep the database in use.
        while db.execute(AssertSqlSafe(kill.clone())).await.is_ok()
            && db.execute(AssertSqlSafe(away.clone())).await.is_err()
        {}
        execute(&mut db, &kill).await;
        eventually("it is unready", || async { !fine_or_unavailable(&bob.get("/readyz").await) })
            .await;

        for n in 0..4 {
            let start = Instant::now();
            let answers = [
                send(&ada, &chat, &format!("away-{round}-{n}")).await,
                bob.get("/chats").await,
                bob.get("/readyz").await,
                bob.get(&format!("/chats/{chat}/messages")).await,
            ];
            for answer in &answers {
                assert!(!fine_or_unavailable(answer), "there is no database: {}", answer.body);
            }
            assert!(start.elapsed() < ANSWER_MAX * 4, "{:?}", start.elapsed());
        }

        bob.get("/livez").await.expect(200);
        let refused = socket.ask(json!({ "type": "read", "chat_id": chat, "message_id": 1 })).await;
        assert_eq!(refused["code"], "unavailable", "{refused}");
        execute(&mut db, &here).await;
        eventually("it is ready again", || async { bob.get("/readyz").await.status == 200 }).await;

        let key = format!("after-{round}");
        let sent = send(&ada, &chat, &key).await.expect(201);
        assert_eq!(
            socket.expect("new_message").await["message"]["id"],
            sent["id"],
            "the connection stayed open"
        );
    }

    assert_eq!(
        bob.texts(&chat, "").await,
        ["before", "after-0", "after-1"],
        "no refused send left a message"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_is_503_soon_and_livez_still_answers() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "before").await.expect(201);

    // Another transaction locks the table, so each read waits in the database and holds a
    // connection.
    let mut holder = server.postgres().await;
    execute(&mut holder, "BEGIN; LOCK TABLE chats IN ACCESS EXCLUSIVE MODE").await;

    let reads = join_all((0..30).map(|_| async {
        let start = Instant::now();
        let answer = bob.get("/chats").await;
        (answer, start.elapsed())
    }));

    let alive = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = Instant::now();
        bob.get("/livez").await.expect(200);
        assert!(start.elapsed() < Duration::from_secs(1));
    };

    let (reads, ()) = tokio::join!(reads, alive);
    let mut soon = 0;
    for (answer, took) in &reads {
        assert!(!fine_or_unavailable(answer));
        // A read with a connection waits for the lock as long as a unit of work may take.
        assert!(*took < Duration::from_secs(13), "{took:?}");
        soon += usize::from(*took < ANSWER_MAX);
    }

    assert!(soon >= 28, "all reads without a connection are refused soon: {soon}");
    execute(&mut holder, "ROLLBACK").await;
    eventually("it works again", || async { bob.get("/chats").await.status == 200 }).await;
    send(&ada, &chat, "after").await.expect(201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_requests_give_their_connections_back() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(3))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for round in 0..20 {
        join_all((0..30).map(|n| abort(&ada, &bob, &chat, round * 30 + n))).await;
    }

    let start = Instant::now();
    bob.get("/chats").await.expect(200);
    send(&ada, &chat, "the end").await.expect(201);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    server.stop().await;
}
