//! The most frequent reads make a fixed number of statements, however many rows they read.

use crate::support::{TestServer, User, on_both_databases};

on_both_databases!(the_inbox_and_a_history_make_one_statement_for_any_size);

/// The number of statements that a request makes once its session is cached, and of entries in the
/// answer.
async fn statements(server: &TestServer, user: &User, path: &str, count_of: &str) -> (u64, usize) {
    user.get(path).await.expect(200);
    let before = server.store().statements();
    let body = user.get(path).await.expect(200);
    let after = server.store().statements();
    (after - before, body[count_of].as_array().unwrap().len())
}

async fn the_inbox_and_a_history_make_one_statement_for_any_size(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let mut chats = Vec::new();
    while chats.len() < 5 {
        let chat = ada.group(&[&bob]).await;
        ada.say(&chat, "hello").await;
        chats.push(chat);
    }

    let (few_chats, five) = statements(&server, &bob, "/chats?limit=100", "chats").await;
    while chats.len() < 50 {
        let chat = ada.group(&[&bob]).await;
        ada.say(&chat, "hello").await;
        chats.push(chat);
    }

    let (many_chats, fifty) = statements(&server, &bob, "/chats?limit=100", "chats").await;
    assert_eq!((five, fifty), (5, 50));
    assert_eq!((few_chats, many_chats), (1, 1));

    let history = format!("/chats/{}/messages?max=100", chats[0]);
    for _ in 1..5 {
        ada.say(&chats[0], "more").await;
    }

    let (few_messages, five) = statements(&server, &bob, &history, "messages").await;
    for _ in 5..100 {
        ada.say(&chats[0], "more").await;
    }

    let (many_messages, hundred) = statements(&server, &bob, &history, "messages").await;
    assert_eq!((five, hundred), (5, 100));
    assert_eq!(
        (few_messages, many_messages),
        (1, 1),
        "one statement checks the permission and reads the page"
    );
}
