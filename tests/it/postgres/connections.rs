//! Connections to Postgres that are cut or fall silent are closed, and replaced; others are kept.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::{RECOVERY_MAX, behind_proxy, calls, outcome, sessions};
use crate::outages::{ANSWER_MAX, send};
use crate::support::{Backend, Mode, TestServer, Way, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed_and_replaced_under_load() {
    let (server, proxy) = behind_proxy(4).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);

    let start = Instant::now();
    let silent_from = Duration::from_secs(1);
    let (ada, bob, chat, proxy) = (&ada, &bob, &chat, &proxy);

    let load = async |lane: usize| {
        let mut outcomes = Vec::new();
        while start.elapsed() < silent_from + RECOVERY_MAX {
            let key = format!("{lane}-{}", outcomes.len());
            let began = start.elapsed();
            let both = [
                outcome(send(ada, chat, &key)).await,
                outcome(bob.get(&format!("/chats/{chat}/messages"))).await,
            ];
            outcomes.extend(both.map(|(fine, took)| (began, fine, took)));
        }
        outcomes
    };

    let silencing = async {
        tokio::time::sleep(silent_from).await;
        // Open connections carry nothing from now on, without an error. New connections work.
        proxy.set(Mode::Strand);
    };

    let (outcomes, ()) = tokio::join!(join_all((0..8).map(load)), silencing);
    for (began, fine, took) in outcomes.into_iter().flatten() {
        assert!(took < ANSWER_MAX, "{took:?}");
        assert!(fine || began < silent_from + ANSWER_MAX, "not recovered: {began:?}");
    }

    for (fine, took) in join_all((0..8).flat_map(|_| calls(ada, bob, chat, "after"))).await {
        assert!(fine && took < ANSWER_MAX, "{took:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_commit_was_not_answered_is_503_and_committed() {
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
        proxy.set(Mode::CutAfter(Way::ToClient, bytes));
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
async fn a_refusal_in_the_middle_of_a_transaction_keeps_the_connection_and_holds_no_lock() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    send(&ada, &chat, "first").await.expect(201);
    join_all((0..20).map(|_| bob.get("/chats"))).await;

    let mut db = server.postgres().await;
    let before = sessions(&mut db).await;
    for _ in 0..20 {
        // The server refuses this edit while it holds the chat's row lock.
        let edit = json!({ "text": "mine" });
        eve.patch(&format!("/chats/{chat}/messages/1"), edit).await.refused(404, "chat_not_found");
        send(&ada, &chat, &format!("{}", rand::random::<u64>())).await.expect(201);
    }

    assert_eq!(sessions(&mut db).await, before);
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in tr%'";
    eventually("no transaction is left open", || async {
        let mut db = server.postgres().await;
        sqlx::query_scalar::<_, i64>(open).fetch_one(&mut db).await.unwrap() == 0
    })
    .await;
    server.stop().await;
}
