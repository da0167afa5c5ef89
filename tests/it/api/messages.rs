//! Messages: sending, reading, editing, removing; read markers.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::column;
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    a_message_has_the_next_id_and_the_next_rev,
    a_hundred_concurrent_messages_have_ids_without_gaps,
    a_text_has_1_to_4096_characters_after_trimming,
    an_invalid_text_or_client_id_is_refused,
    a_reply_names_an_existing_message,
    the_history_is_read_from_either_end,
    only_its_sender_edits_a_message,
    an_edit_to_the_same_text_is_no_change,
    a_removed_message_keeps_its_id_and_loses_its_text,
    who_may_remove_whose_message,
    in_a_channel_members_read_and_do_not_write,
    a_member_who_must_no_longer_write_must_not_edit,
    the_read_marker_moves_forward_only_and_not_past_the_end,
    an_unknown_message_is_404,
);

pub(super) fn path(chat: &str) -> String {
    format!("/chats/{chat}/messages")
}

pub(super) async fn send(user: &User, chat: &str, body: Value) -> Answer {
    user.post(&path(chat), body).await
}

pub(super) async fn pair(server: &TestServer) -> (User, User, String) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    (ada, bob, chat)
}

async fn a_message_has_the_next_id_and_the_next_rev(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    let first = ada.say(&chat, "one").await;
    assert_eq!(
        (&first["id"], &first["rev"], &first["kind"]),
        (&json!(1), &json!(2), &json!("text"))
    );
    assert_eq!((&first["chat_id"], &first["sender_id"]), (&json!(chat), &json!(ada.id)));
    for absent in ["edited_at", "removed_at", "reply_to", "client_id"] {
        assert_eq!(first[absent], Value::Null);
    }

    let second = bob.say(&chat, "two").await;
    assert_eq!((&second["id"], &second["rev"]), (&json!(2), &json!(3)));

    for user in [&ada, &bob] {
        assert_eq!(
            user.get(&format!("{}/1", path(&chat))).await.expect(200),
            first,
            "readable at once, and the same"
        );
        assert_eq!(user.get(&path(&chat)).await.expect(200)["messages"], json!([first, second]));
    }
}

async fn a_hundred_concurrent_messages_have_ids_without_gaps(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    let other = ada.group(&[&bob]).await;
    let sends = (0..100).map(|number| {
        let (user, chat) = (
            if number % 2 == 0 { &ada } else { &bob },
            if number % 4 < 2 { &chat } else { &other },
        );
        async move { user.say(chat, &format!("m{number}")).await }
    });

    let sent = join_all(sends).await;
    for chat in [&chat, &other] {
        let history = ada.get(&format!("{}?max=100", path(chat))).await.expect(200);
        let ids: Vec<i64> =
            column(&history["messages"], "id").iter().map(|id| id.as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=50).collect::<Vec<i64>>());

        let mut answered: Vec<Value> =
            sent.iter().filter(|it| it["chat_id"] == json!(chat)).cloned().collect();
        answered.sort_by_key(|message| message["id"].as_i64());
        assert_eq!(
            history["messages"],
            json!(answered),
            "the history has the messages of the answers"
        );
    }
}

async fn a_text_has_1_to_4096_characters_after_trimming(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    let longest = "𝄞".repeat(4096);
    let padded = format!(" \n\u{3000}{longest}\t ");
    let texts = [
        "x",
        "  x  ",
        &longest,
        &padded,
        "a\r\nb\tc\u{1}",
        "\u{feff}",
        "👩‍👩‍👧‍👦 e\u{301} \u{202e}rtl",
        "<script>&amp;\"'",
    ];

    for text in texts {
        assert_eq!(ada.say(&chat, text).await["text"], text.trim());
    }
    assert_eq!(
        bob.texts(&chat, "").await,
        texts.map(str::trim),
        "texts are read as they were sent"
    );

    let too_long = "é".repeat(4097);
    for text in ["", "   ", "\n\t\r", "\u{3000}\u{a0}", &too_long] {
        send(&ada, &chat, json!({ "text": text })).await.refused_fields(&["text"]);
        ada.patch(&format!("{}/1", path(&chat)), json!({ "text": text }))
            .await
            .refused_fields(&["text"]);
    }

    assert_eq!(bob.texts(&chat, "").await.len(), texts.len());
}

async fn an_invalid_text_or_client_id_is_refused(server: TestServer) {
    let (ada, _, chat) = pair(&server).await;
    send(&ada, &chat, json!({ "text": "a\u{0}b" })).await.refused_fields(&["text"]);
    for key in ["", "a\u{0}", &"é".repeat(65)] {
        send(&ada, &chat, json!({ "text": "x", "client_id": key }))
            .await
            .refused_fields(&["client_id"]);
    }

    send(&ada, &chat, json!({ "text": "", "client_id": "", "reply_to": 0 }))
        .await
        .refused_fields(&["text", "client_id", "reply_to"]);

    for raw in [
        r#"{"text":"\ud800"}"#,
        r#"{"text":"\udc00\ud800"}"#,
        r#"{"text":"a","client_id":"\ud800"}"#,
    ] {
        let request = ada
            .request(reqwest::Method::POST, &path(&chat))
            .header("content-type", "application/json");
        ada.send(request.body(raw)).await.refused(400, "malformed_json");
    }

    let request =
        ada.request(reqwest::Method::POST, &path(&chat)).header("content-type", "application/json");
    ada.send(request.body(b"{\"text\":\"\xff\xfe\"}".to_vec()))
        .await
        .refused(400, "malformed_json");
    send(&ada, &chat, json!({ "text": "x", "client_id": "é".repeat(64) })).await.expect(201);
    assert_eq!(ada.texts(&chat, "").await, ["x"]);
}

async fn a_reply_names_an_existing_message(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    ada.say(&chat, "question").await;

    let reply = send(&bob, &chat, json!({ "text": "answer", "reply_to": 1 })).await.expect(201);
    assert_eq!(reply["reply_to"], 1);
    assert_eq!(ada.get(&path(&chat)).await.expect(200)["messages"][1], reply);
    for nothing in [3, 4, i64::MAX] {
        send(&bob, &chat, json!({ "text": "x", "reply_to": nothing }))
            .await
            .refused(404, "message_not_found");
    }

    for bad in [json!(0), json!(-1), json!("1"), json!(1.5)] {
        send(&bob, &chat, json!({ "text": "x", "reply_to": bad }))
            .await
            .refused_fields(&["reply_to"]);
    }

    ada.delete(&format!("{}/1", path(&chat))).await.expect(204);
    send(&bob, &chat, json!({ "text": "x", "reply_to": 1 })).await.expect(201);
    assert_eq!(ada.texts(&chat, "").await.len(), 3);
}

async fn the_history_is_read_from_either_end(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    for number in 1..=10 {
        ada.say(&chat, &number.to_string()).await;
    }

    let texts = async |query: &str| bob.texts(&chat, query).await.join(" ");
    assert_eq!(texts("").await, "1 2 3 4 5 6 7 8 9 10");
    assert_eq!(texts("?max=3").await, "8 9 10");
    assert_eq!(texts("?before=8&max=3").await, "5 6 7");
    assert_eq!(texts("?before=3&max=5").await, "1 2");
    assert_eq!(texts("?before=1").await, "");
    assert_eq!(texts("?after=0&max=3").await, "1 2 3");
    assert_eq!(texts("?after=3&max=3").await, "4 5 6");
    assert_eq!(texts("?after=9&max=3").await, "10");
    assert_eq!(texts("?after=10").await, "");
    assert_eq!(texts("?after=2&before=6").await, "3 4 5");
    assert_eq!(texts("?after=2&before=9&max=2").await, "3 4");
    assert_eq!(texts("?after=6&before=2").await, "");
    assert_eq!(texts("?before=9223372036854775807&max=1").await, "10");
    assert_eq!(texts("?after=9223372036854775807").await, "");
    assert_eq!(texts("?after=-9223372036854775808&max=1").await, "1");

    for (query, field) in
        [("before=x", "before"), ("after=", "after"), ("max=0", "max"), ("after=1.5", "after")]
    {
        bob.get(&format!("{}?{query}", path(&chat))).await.refused_fields(&[field]);
    }
}

async fn only_its_sender_edits_a_message(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    bob.say(&chat, "befor").await;

    let one = format!("{}/1", path(&chat));
    ada.patch(&one, json!({ "text": "forged" })).await.refused(403, "not_allowed");

    let edited = bob.patch(&one, json!({ "text": " before " })).await.expect(200);
    assert_eq!(
        (&edited["text"], &edited["id"], &edited["rev"]),
        (&json!("before"), &json!(1), &json!(3))
    );
    assert!(edited["edited_at"].is_string());
    assert_eq!(ada.get(&one).await.expect(200), edited);
    bob.patch(&one, json!({ "text": "x", "sender_id": ada.id }))
        .await
        .refused_fields(&["sender_id"]);
    bob.patch(&one, json!({})).await.refused_fields(&["text"]);
    bob.delete(&one).await.expect(204);
    bob.patch(&one, json!({ "text": "risen" })).await.refused(409, "message_removed");
    ada.patch(&one, json!({ "text": "risen" })).await.refused(403, "not_allowed");
}

async fn an_edit_to_the_same_text_is_no_change(server: TestServer) {
    let (ada, _, chat) = pair(&server).await;
    let sent = ada.say(&chat, "same").await;
    let edited =
        ada.patch(&format!("{}/1", path(&chat)), json!({ "text": " same " })).await.expect(200);
    assert_eq!(edited, sent);
    assert_eq!(ada.get(&format!("/chats/{chat}")).await.expect(200)["rev"], 2);
}

async fn a_removed_message_keeps_its_id_and_loses_its_text(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    ada.say(&chat, "question").await;
    send(&ada, &chat, json!({ "text": "a secret", "reply_to": 1 })).await.expect(201);

    let two = format!("{}/2", path(&chat));
    ada.patch(&two, json!({ "text": "another secret" })).await.expect(200);
    ada.delete(&two).await.expect(204);
    ada.delete(&two).await.expect(204);
    assert_eq!(
        ada.get(&format!("/chats/{chat}")).await.expect(200)["rev"],
        5,
        "removing twice is one change"
    );

    let left = bob.get(&two).await.expect(200);
    assert_eq!((&left["id"], &left["rev"], &left["text"]), (&json!(2), &json!(5), &Value::Null));
    assert_eq!(left["reply_to"], Value::Null);
    assert!(left["removed_at"].is_string());

    let history = bob.get(&path(&chat)).await.expect(200);
    assert_eq!(history["messages"][1], left);

    for answer in [
        history,
        bob.get("/chats").await.expect(200),
        ada.get(&format!("/chats/{chat}/changes")).await.expect(200),
    ] {
        assert!(!answer.to_string().contains("secret"), "{answer}");
    }

    assert_eq!(ada.say(&chat, "next").await["id"], 3);
}

async fn who_may_remove_whose_message(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob, &cid]).await;
    ada.patch(&format!("/chats/{chat}/members/{}", bob.id), json!({ "role": "admin" }))
        .await
        .expect(200);
    for user in [&ada, &bob, &cid, &cid, &cid] {
        user.say(&chat, "mine").await;
    }

    let message = |id: i64| format!("{}/{id}", path(&chat));
    for others in [1, 2] {
        cid.delete(&message(others)).await.refused(403, "not_allowed");
    }
    cid.delete(&message(3)).await.expect(204);
    bob.delete(&message(4)).await.expect(204);
    ada.delete(&message(5)).await.expect(204);
    bob.delete(&message(1)).await.expect(204);

    let private = ada.private_chat(&bob).await;
    bob.say(&private, "mine").await;
    ada.delete(&format!("{}/1", path(&private))).await.refused(403, "not_allowed");
}

async fn in_a_channel_members_read_and_do_not_write(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.channel(&[&bob, &cid]).await;
    ada.patch(&format!("/chats/{chat}/members/{}", bob.id), json!({ "role": "admin" }))
        .await
        .expect(200);
    for user in [&ada, &bob] {
        user.say(&chat, "news").await;
    }

    send(&cid, &chat, json!({ "text": "me too" })).await.refused(403, "not_allowed");
    cid.delete(&format!("{}/1", path(&chat))).await.refused(403, "not_allowed");
    assert_eq!(cid.texts(&chat, "").await, ["news", "news"]);
    cid.put(&format!("/chats/{chat}/read"), json!({ "message_id": 2 })).await.expect(204);
}

async fn a_member_who_must_no_longer_write_must_not_edit(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.channel(&[&bob]).await;
    let role = format!("/chats/{chat}/members/{}", bob.id);
    ada.patch(&role, json!({ "role": "admin" })).await.expect(200);
    bob.say(&chat, "official").await;
    ada.patch(&role, json!({ "role": "member" })).await.expect(200);
    bob.patch(&format!("{}/1", path(&chat)), json!({ "text": "forged" }))
        .await
        .refused(403, "not_allowed");
    bob.delete(&format!("{}/1", path(&chat))).await.expect(204);
}

async fn the_read_marker_moves_forward_only_and_not_past_the_end(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    for _ in 0..3 {
        ada.say(&chat, "hello").await;
    }

    let read = format!("/chats/{chat}/read");
    let marker = async || {
        bob.get(&format!("/chats/{chat}")).await.expect(200)["last_read_message_id"].clone()
    };
    for (asked, stands) in [(2, 2), (1, 2), (0, 2), (2, 2), (3, 3), (1, 3)] {
        bob.put(&read, json!({ "message_id": asked })).await.expect(204);
        assert_eq!(marker().await, json!(stands));
    }

    for nothing in [4, i64::MAX, -1, i64::MIN] {
        bob.put(&read, json!({ "message_id": nothing })).await.refused(404, "message_not_found");
    }
    for bad in [json!("1"), json!(1.5), Value::Null] {
        bob.put(&read, json!({ "message_id": bad })).await.refused_fields(&["message_id"]);
    }

    assert_eq!(marker().await, 3);
    let members = ada.get(&format!("/chats/{chat}/members")).await.expect(200);
    assert_eq!(
        column(&members["members"], "last_read_message_id"),
        [3, 3],
        "the other member sees the marker"
    );
    assert_eq!(
        ada.get(&format!("/chats/{chat}")).await.expect(200)["rev"],
        4,
        "no durable change of the chat"
    );
}

async fn an_unknown_message_is_404(server: TestServer) {
    let (ada, _, chat) = pair(&server).await;
    ada.say(&chat, "one").await;

    for id in
        ["0", "2", "-1", "9223372036854775807", "9223372036854775808", "x", "1.0", "01x", "%00"]
    {
        let message = format!("{}/{id}", path(&chat));
        ada.get(&message).await.refused(404, "message_not_found");
        ada.patch(&message, json!({ "text": "x" })).await.refused(404, "message_not_found");
        ada.delete(&message).await.refused(404, "message_not_found");
    }

    assert_eq!(ada.texts(&chat, "").await, ["one"]);
}
