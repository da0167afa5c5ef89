//! Many rows in one statement, and read markers that never move back.

use std::time::Duration;

use crate::support::{
    Backend, TestServer, User, eventually, execute, lock_waits, on_both_databases,
};
use serde_json::json;

on_both_databases!(
    a_channel_of_a_hundred_takes_as_many_statements_as_a_channel_of_two,
    clearing_the_history_during_sends_never_moves_the_read_marker_back,
);

async fn statements_of_a_channel(server: &TestServer, ada: &User, members: &[User]) -> u64 {
    let ids: Vec<&str> = members.iter().map(|user| user.id.as_str()).collect();
    let before = server.store().statements();
    let request = json!({ "kind": "channel", "name": "Crew", "member_ids": ids });
    let chat = ada.post("/chats", request).await.expect(201);
    assert_eq!(chat["member_count"], members.len() + 1);
    server.store().statements() - before
}

async fn a_channel_of_a_hundred_takes_as_many_statements_as_a_channel_of_two(server: TestServer) {
    let ada = server.user().await;
    let mut members = Vec::new();
    for _ in 0..100 {
        members.push(server.user().await);
    }

    statements_of_a_channel(&server, &ada, &members[..1]).await;
    let few = statements_of_a_channel(&server, &ada, &members[..1]).await;
    let many = statements_of_a_channel(&server, &ada, &members).await;
    // Users locked, chat, limits of the creator, limits of the others, members, view.
    assert_eq!((few, many), (6, 6));
    let shown = members[50].get("/chats").await.expect(200);
    assert_eq!(shown["chats"][0]["role"], "member", "{shown}");
}

async fn clearing_the_history_during_sends_never_moves_the_read_marker_back(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let path = format!("/chats/{chat}");
    let (end, ended) = tokio::sync::watch::channel(false);

    let sending = async {
        let mut count = 0;
        while !*ended.borrow() {
            ada.say(&chat, "on and on").await;
            count += 1;
        }
        count
    };

    let clearing = async {
        let mut marker = 0;
        for _ in 0..60 {
            ada.delete(&path).await.expect(204);
            let shown = ada.get(&path).await.expect(200);
            let now = shown["last_read_message_id"].as_i64().unwrap();
            assert!(now >= marker, "from {marker} back to {now}");
            marker = now;
        }
        end.send_replace(true);
    };

    let (count, ()) = tokio::join!(sending, clearing);
    let shown = ada.get(&path).await.expect(200);
    assert_eq!(
        (&shown["last_read_message_id"], &shown["unread_count"]),
        (&json!(count), &json!(0)),
        "{shown}"
    );
}

/// The history is cleared while a send has written the marker and not yet committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_commits_while_the_history_is_cleared_keeps_its_read_marker() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;

    let (mut db, mut watcher) = (server.postgres().await, server.postgres().await);
    let of_ada = format!("chat_id = '{chat}' AND user_id = '{}'", ada.id);
    let marker = format!("BEGIN; UPDATE members SET last_read_message_id = 2 WHERE {of_ada}");
    execute(&mut db, &marker).await;

    let path = format!("/chats/{chat}");
    let committing = async {
        eventually("it waits for the marker", async || lock_waits(&mut watcher).await > 0).await;
        let sent = format!(
            "INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, sent_at_ms)
             SELECT id, 2, rev + 1, rev + 1, '{}', 'text', 'two', 0 FROM chats WHERE id = '{chat}';
             UPDATE chats SET rev = rev + 1, last_message_id = 2 WHERE id = '{chat}'; COMMIT",
            ada.id
        );
        execute(&mut db, &sent).await;
    };

    let clearing = tokio::time::timeout(Duration::from_secs(20), ada.delete(&path));
    let (cleared, ()) = tokio::join!(clearing, committing);
    cleared.unwrap().expect(204);

    let shown = ada.get(&path).await.expect(200);
    assert_eq!(
        (&shown["last_read_message_id"], &shown["unread_count"]),
        (&json!(2), &json!(0)),
        "{shown}"
    );
    server.stop().await;
}
