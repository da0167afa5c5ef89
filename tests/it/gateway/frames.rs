//! Requests by frame: each is answered, by the same rules as over HTTP.

use serde_json::{Value, json};

use crate::support::{Socket, TestServer, eventually, everywhere};

everywhere!(
    a_ping_is_answered_with_its_id,
    a_send_is_acknowledged_with_the_message_as_it_is_stored,
    a_send_before_sync_succeeds_and_the_sync_delivers_it,
    a_repeated_client_id_sends_once_and_returns_the_first,
    pipelined_sends_keep_their_order_and_are_all_acknowledged,
    a_refused_send_names_the_code_and_the_fields,
    edits_and_removals_are_acknowledged_and_announced,
    refused_edits_and_removals_have_the_codes_of_http,
    a_read_marker_reaches_the_members_and_the_users_other_devices,
    in_a_channel_a_read_marker_reaches_only_the_users_other_devices,
    typing_reaches_the_others_only_and_is_not_answered,
    typing_is_refused_to_members_that_cannot_write,
    strangers_get_chat_not_found,
    a_message_reaches_every_socket_of_every_member_and_is_acknowledged,
);

fn refused(answer: &Value, code: &str) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    assert!(answer["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{answer}");
}

fn fields(answer: &Value) -> Vec<&str> {
    refused(answer, "invalid_fields");
    answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|error| error["field"].as_str())
        .collect()
}

async fn a_message_reaches_every_socket_of_every_member_and_is_acknowledged(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);
    let send =
        json!({ "type": "send_message", "chat_id": chat, "text": "hello", "client_id": "k1" });
    let answer = a.ask(send).await;
    assert_eq!(answer["type"], "ack", "{answer}");
    assert_eq!(answer["message"]["id"], 1);

    let event = b.expect("new_message").await;
    assert_eq!(
        (event["rev"].as_i64(), event["message"]["text"].as_str()),
        (Some(2), Some("hello"))
    );
    assert!(event["message"]["client_id"].is_null(), "only the sender gets the key");
}

async fn a_ping_is_answered_with_its_id(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::connect(&ada).await;
    for id in [json!("a"), json!(0), json!(-7), json!(i64::MAX), json!(""), json!("ü".repeat(32))]
    {
        socket.send(json!({ "type": "ping", "id": id })).await;
        assert_eq!(socket.expect("pong").await["id"], id);
    }

    socket.send(json!({ "type": "ping" })).await;
    assert!(socket.expect("pong").await.get("id").is_none());
}

async fn a_send_is_acknowledged_with_the_message_as_it_is_stored(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let mut socket = Socket::live(&ada).await;
    let send =
        json!({ "type": "send_message", "chat_id": chat, "text": "  hi  ", "client_id": "k" });
    let ack = socket.ask(send).await;
    let stored = ada.get(&format!("/chats/{chat}/messages/1")).await.expect(200);
    assert_eq!((&ack["type"], &ack["message"]), (&json!("ack"), &stored));
    assert_eq!(stored["text"], "hi");

    let reply = json!({ "type": "send_message", "chat_id": chat, "text": "re", "reply_to": 1 });
    assert_eq!(socket.ask(reply).await["message"]["reply_to"], 1);
}

async fn a_send_before_sync_succeeds_and_the_sync_delivers_it(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::connect(&ada).await;
    let ack = socket.ask(json!({ "type": "send_message", "chat_id": chat, "text": "early" })).await;
    assert_eq!(ack["message"]["rev"], 2);
    socket.send(json!({ "type": "sync", "chats": { &chat: 1 } })).await;
    let replay = socket.until("synced").await;
    assert_eq!((replay.len(), &replay[0]["message"]), (2, &ack["message"]));
}

async fn a_repeated_client_id_sends_once_and_returns_the_first(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);
    let send = |text: &str| {
        json!({
            "type": "send_message", "chat_id": chat, "text": text, "client_id": "once",
        })
    };

    let first = a.ask(send("one")).await;
    for _ in 0..3 {
        assert_eq!(a.ask(send("one")).await["message"], first["message"]);
    }

    refused(&a.ask(send("two")).await, "client_id_reused");
    let over_http = json!({ "text": "one", "client_id": "once" });
    assert_eq!(
        ada.post(&format!("/chats/{chat}/messages"), over_http).await.expect(200),
        first["message"]
    );

    b.expect("new_message").await;
    b.expect_silence().await;
    assert_eq!(ada.texts(&chat, "").await, ["one"]);

    // A `client_id` is unique for one sender only.
    assert_eq!(b.ask(send("one")).await["message"]["id"], 2);
}

async fn pipelined_sends_keep_their_order_and_are_all_acknowledged(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::connect(&ada).await, Socket::live(&bob).await);

    for number in 1..=200 {
        let text = number.to_string();
        a.send(json!({ "type": "send_message", "chat_id": chat, "text": text, "id": number }))
            .await;
    }

    let mut acked = vec![false; 201];
    for _ in 1..=200 {
        let ack = a.expect("ack").await;
        let number = usize::try_from(ack["id"].as_u64().unwrap()).unwrap();
        assert_eq!(
            ack["message"]["id"], number,
            "the {number}th sent is the {number}th in the chat: {ack}"
        );
        assert!(!std::mem::replace(&mut acked[number], true), "{number} was acknowledged twice");
    }

    for number in 1..=200 {
        let event = b.expect("new_message").await;
        assert_eq!(
            (&event["rev"], &event["message"]["text"]),
            (&json!(number + 1), &json!(number.to_string()))
        );
    }
}

async fn a_refused_send_names_the_code_and_the_fields(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::live(&ada).await;
    let mut ask = async |extra: Value| {
        let mut frame = json!({ "type": "send_message", "chat_id": chat, "text": "x" });
        for (name, value) in extra.as_object().unwrap() {
            frame[name] = value.clone();
        }
        socket.ask(frame).await
    };

    for text in ["", "   ", "a\0b", &"x".repeat(4097), &"😀".repeat(4097)] {
        assert_eq!(fields(&ask(json!({ "text": text })).await), ["text"], "{text:?}");
    }
    for client_id in ["", &"k".repeat(65)] {
        assert_eq!(fields(&ask(json!({ "client_id": client_id })).await), ["client_id"]);
    }
    for reply_to in [json!(0), json!(-1)] {
        assert_eq!(fields(&ask(json!({ "reply_to": reply_to })).await), ["reply_to"]);
    }

    assert_eq!(fields(&ask(json!({ "text": 1, "reply_to": "x", "colour": "red" })).await).len(), 3);
    assert_eq!(fields(&ask(json!({ "chat_id": "x" })).await), ["chat_id"]);
    refused(&ask(json!({ "reply_to": 1 })).await, "message_not_found");
    assert_eq!(
        ask(json!({ "text": "😀".repeat(4096) })).await["message"]["id"],
        1,
        "nothing was sent before"
    );
}

async fn edits_and_removals_are_acknowledged_and_announced(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::connect(&ada).await, Socket::live(&bob).await);
    a.ask(json!({ "type": "send_message", "chat_id": chat, "text": "one" })).await;

    let edit = json!({ "type": "edit_message", "chat_id": chat, "message_id": 1, "text": "two" });
    let ack = a.ask(edit.clone()).await;
    assert_eq!(
        (&ack["type"], &ack["message"]["text"], &ack["message"]["rev"]),
        (&json!("ack"), &json!("two"), &json!(3))
    );
    assert_eq!(a.ask(edit).await["message"]["rev"], 3, "the same text again changes nothing");

    let remove = json!({ "type": "remove_message", "chat_id": chat, "message_id": 1 });
    assert_eq!(a.ask(remove.clone()).await["type"], "ack");
    assert_eq!(a.ask(remove).await["type"], "ack", "removing twice is no error");

    assert_eq!(b.expect("new_message").await["rev"], 2);
    let edited = b.expect("message_edited").await;
    assert_eq!((&edited["rev"], &edited["message"]["text"]), (&json!(3), &json!("two")));
    let removed = b.expect("message_removed").await;
    assert_eq!((&removed["rev"], &removed["message_id"]), (&json!(4), &json!(1)));
    b.expect_silence().await;
}

async fn refused_edits_and_removals_have_the_codes_of_http(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "ada's").await;
    let mut b = Socket::live(&bob).await;
    let edit = |id: i64, text: &str| {
        json!({
            "type": "edit_message", "chat_id": chat, "message_id": id, "text": text,
        })
    };
    let remove = |id: i64| json!({ "type": "remove_message", "chat_id": chat, "message_id": id });

    refused(&b.ask(edit(1, "mine")).await, "not_allowed");
    refused(&b.ask(remove(1)).await, "not_allowed");

    for id in [0, -1, 2, i64::MAX] {
        refused(&b.ask(edit(id, "x")).await, "message_not_found");
        refused(&b.ask(remove(id)).await, "message_not_found");
        let read = json!({ "type": "read", "chat_id": chat, "message_id": id });
        if id != 0 {
            refused(&b.ask(read).await, "message_not_found");
        }
    }

    assert_eq!(fields(&b.ask(edit(1, "")).await), ["text"]);
    b.ask(json!({ "type": "send_message", "chat_id": chat, "text": "bob's" })).await;
    b.ask(remove(2)).await;
    refused(&b.ask(edit(2, "again")).await, "message_removed");
}

async fn a_read_marker_reaches_the_members_and_the_users_other_devices(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for text in ["one", "two", "three"] {
        ada.say(&chat, text).await;
    }

    let (mut a, mut b, mut other) =
        (Socket::live(&ada).await, Socket::live(&bob).await, Socket::live(&bob).await);

    let read = |id: i64| json!({ "type": "read", "chat_id": chat, "message_id": id });
    assert_eq!(b.ask(read(2)).await["type"], "ack");
    for socket in [&mut a, &mut other] {
        let frame = socket.expect("read").await;
        assert_eq!(
            (&frame["chat_id"], &frame["user_id"], &frame["message_id"]),
            (&json!(chat), &json!(bob.id), &json!(2))
        );
    }

    assert_eq!(
        b.ask(read(1)).await["type"],
        "ack",
        "an older marker is no error and changes nothing"
    );
    a.expect_silence().await;
    let inbox = bob.get("/chats").await.expect(200);
    assert_eq!(
        (&inbox["chats"][0]["unread_count"], &inbox["chats"][0]["last_read_message_id"]),
        (&json!(1), &json!(2))
    );
}

async fn in_a_channel_a_read_marker_reaches_only_the_users_other_devices(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.channel(&[&bob]).await;
    ada.say(&chat, "news").await;
    let (mut a, mut b, mut other) =
        (Socket::live(&ada).await, Socket::live(&bob).await, Socket::live(&bob).await);

    assert_eq!(
        b.ask(json!({ "type": "read", "chat_id": chat, "message_id": 1 })).await["type"],
        "ack"
    );
    assert_eq!(other.expect("read").await["user_id"], bob.id);
    a.expect_silence().await;
}

async fn typing_reaches_the_others_only_and_is_not_answered(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let (mut a, mut other) = (Socket::live(&ada).await, Socket::live(&ada).await);
    let (mut b, mut e) = (Socket::live(&bob).await, Socket::live(&eve).await);
    let mut unsynced = Socket::connect(&bob).await;

    a.send(json!({ "type": "typing", "chat_id": chat, "id": 1 })).await;
    let frame = b.expect("typing").await;
    assert_eq!((&frame["chat_id"], &frame["user_id"]), (&json!(chat), &json!(ada.id)));
    for socket in [&mut a, &mut other, &mut e, &mut unsynced] {
        socket.expect_silence().await;
    }
}

async fn typing_is_refused_to_members_that_cannot_write(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.channel(&[&bob]).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);
    refused(&b.ask(json!({ "type": "typing", "chat_id": chat })).await, "not_allowed");
    refused(
        &b.ask(json!({ "type": "send_message", "chat_id": chat, "text": "x" })).await,
        "not_allowed",
    );
    a.expect_silence().await;
}

async fn strangers_get_chat_not_found(server: TestServer) {
    let (ada, eve) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    ada.say(&chat, "secret").await;
    let (mut a, mut e) = (Socket::live(&ada).await, Socket::live(&eve).await);

    for chat_id in [chat.as_str(), "01890000-0000-7000-8000-000000000000"] {
        for frame in [
            json!({ "type": "send_message", "chat_id": chat_id, "text": "x" }),
            json!({ "type": "edit_message", "chat_id": chat_id, "message_id": 1, "text": "x" }),
            json!({ "type": "remove_message", "chat_id": chat_id, "message_id": 1 }),
            json!({ "type": "read", "chat_id": chat_id, "message_id": 1 }),
            json!({ "type": "typing", "chat_id": chat_id }),
        ] {
            refused(&e.ask(frame).await, "chat_not_found");
        }
    }

    a.expect_silence().await;
    eventually("the message is as it was", async || ada.texts(&chat, "").await == ["secret"]).await;
}
