//! Sync of a client that cannot catch up: it reloads the chat.

use serde_json::json;

use crate::support::{Socket, TestServer, User, everywhere};

everywhere!(
    a_chat_too_far_behind_is_reset,
    a_client_ahead_of_the_log_is_reset,
    a_member_that_left_and_joined_again_is_reset,
);

async fn fill(user: &User, chat: &str, count: usize) {
    let mut socket = Socket::connect(user).await;
    for number in 0..count {
        let text = number.to_string();
        socket.send(json!({ "type": "send_message", "chat_id": chat, "text": text })).await;
    }

    for _ in 0..count {
        socket.expect("ack").await;
    }
}

async fn a_chat_too_far_behind_is_reset(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    fill(&ada, &chat, 501).await;

    let (mut b, replay) = Socket::resumed(&bob, json!({ &chat: 1 })).await;
    let reset = json!({ "type": "reset", "chat_id": chat, "rev": 502 });
    assert_eq!(replay, [reset, json!({ "type": "synced", "chats": { &chat: 502 } })]);

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 2 })).await;
    let revs: Vec<i64> = replay.iter().filter_map(|frame| frame["rev"].as_i64()).collect();
    assert_eq!(revs, (3..=502).collect::<Vec<_>>(), "five hundred changes are sent");

    ada.say(&chat, "more").await;
    assert_eq!(b.expect("new_message").await["rev"], 503);
}

async fn a_client_ahead_of_the_log_is_reset(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for ahead in [2, 1000, i64::MAX] {
        let (_, replay) = Socket::resumed(&bob, json!({ &chat: ahead })).await;
        assert_eq!(replay[0], json!({ "type": "reset", "chat_id": chat, "rev": 1 }));
    }
    let (mut b, _) = Socket::resumed(&bob, json!({ &chat: i64::MAX })).await;
    ada.say(&chat, "one").await;
    assert_eq!(b.expect("new_message").await["rev"], 2);
}

async fn a_member_that_left_and_joined_again_is_reset(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;

    ada.delete(&format!("/chats/{chat}/members/{}", bob.id)).await.expect(204); // 2
    ada.say(&chat, "without bob").await; // 3
    ada.add_member(&chat, &bob).await; // 4
    ada.say(&chat, "with bob").await; // 5

    for known in [1, 3] {
        let (_, replay) = Socket::resumed(&bob, json!({ &chat: known })).await;
        let reset = json!({ "type": "reset", "chat_id": chat, "rev": 5 });
        assert_eq!(replay, [reset, json!({ "type": "synced", "chats": { &chat: 5 } })]);
    }

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 4 })).await;
    assert_eq!((replay.len(), &replay[0]["message"]["text"]), (2, &json!("with bob")));
    let (_, replay) = Socket::resumed(&ada, json!({ &chat: 1 })).await;
    assert_eq!(replay.len(), 4, "a member that stayed gets the changes: {replay:?}");
}
