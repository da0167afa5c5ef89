//! What reaches whom, as it happens.

use serde_json::json;

use crate::support::{Socket, TestServer, everywhere};

everywhere!(a_message_reaches_every_socket_of_every_member_and_is_acknowledged);

async fn a_message_reaches_every_socket_of_every_member_and_is_acknowledged(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);
    let answer = a
        .ask(json!({ "type": "send_message", "chat_id": chat, "text": "hello", "client_id": "k1" }))
        .await;
    assert_eq!(answer["type"], "ack", "{answer}");
    assert_eq!(answer["message"]["id"], 1);
    let event = b.expect("new_message").await;
    assert_eq!(
        (event["rev"].as_i64(), event["message"]["text"].as_str()),
        (Some(2), Some("hello"))
    );
    assert!(event["message"]["client_id"].is_null(), "the key is the sender's own");
}
