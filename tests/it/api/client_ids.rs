//! Idempotency keys: a `client_id` stands for one message of one sender in one chat.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::column;
use super::messages::{pair, path, send};
use crate::support::{TestServer, everywhere};

everywhere!(
    a_repeated_client_id_returns_the_first_message,
    a_client_id_with_another_body_is_refused,
    a_client_id_finds_its_message_after_an_edit_or_removal,
    a_client_id_is_unique_per_sender_and_chat,
    concurrent_sends_with_one_client_id_create_one_message,
    a_client_id_is_only_shown_to_its_sender,
);

async fn a_repeated_client_id_returns_the_first_message(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    bob.say(&chat, "question").await;

    let body = json!({ "text": "answer", "client_id": "k1", "reply_to": 1 });
    let first = send(&ada, &chat, body.clone()).await.expect(201);
    assert_eq!(send(&ada, &chat, body.clone()).await.expect(200), first);

    let trimmed = json!({ "text": "  answer\n", "client_id": "k1", "reply_to": 1 });
    assert_eq!(send(&ada, &chat, trimmed).await.expect(200), first, "trimmed, it is the same");
    bob.say(&chat, "more").await;
    server.advance(std::time::Duration::from_hours(24 * 365));

    let again = super::log_in(&ada).await;
    assert_eq!(
        send(&super::granted(&ada, &again), &chat, body).await.expect(200),
        first,
        "for good"
    );
}

async fn a_client_id_with_another_body_is_refused(server: TestServer) {
    let (ada, _, chat) = pair(&server).await;
    let first = send(&ada, &chat, json!({ "text": "one", "client_id": "k1" })).await.expect(201);
    send(&ada, &chat, json!({ "text": "two", "client_id": "k1" }))
        .await
        .refused(409, "client_id_reused");

    let reply = json!({ "text": "one", "client_id": "k1", "reply_to": 1 });
    send(&ada, &chat, reply).await.refused(409, "client_id_reused");
    send(&ada, &chat, json!({ "text": "One", "client_id": "k1" }))
        .await
        .refused(409, "client_id_reused");
    assert_eq!(ada.get(&path(&chat)).await.expect(200)["messages"], json!([first]));
}

async fn a_client_id_finds_its_message_after_an_edit_or_removal(server: TestServer) {
    let (ada, _, chat) = pair(&server).await;
    let body = json!({ "text": "one", "client_id": "k1" });
    send(&ada, &chat, body.clone()).await.expect(201);

    let one = format!("{}/1", path(&chat));
    ada.patch(&one, json!({ "text": "edited" })).await.expect(200);

    let found = send(&ada, &chat, body.clone()).await.expect(200);
    assert_eq!((&found["id"], &found["text"]), (&json!(1), &json!("edited")));

    let other = json!({ "text": "edited", "client_id": "k1" });
    send(&ada, &chat, other.clone()).await.refused(409, "client_id_reused");
    ada.delete(&one).await.expect(204);

    let found = send(&ada, &chat, body).await.expect(200);
    assert_eq!((&found["id"], &found["text"]), (&json!(1), &Value::Null));
    assert!(found["removed_at"].is_string());
    send(&ada, &chat, other).await.refused(409, "client_id_reused");
    assert_eq!(ada.get(&path(&chat)).await.expect(200)["messages"].as_array().unwrap().len(), 1);
}

async fn a_client_id_is_unique_per_sender_and_chat(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    let other = ada.group(&[&bob]).await;
    let body = |text: &str| json!({ "text": text, "client_id": "k1" });
    assert_eq!(send(&ada, &chat, body("of ada")).await.expect(201)["id"], 1);
    assert_eq!(send(&bob, &chat, body("of bob")).await.expect(201)["id"], 2);
    assert_eq!(send(&ada, &other, body("elsewhere")).await.expect(201)["id"], 1);
    assert_eq!(
        send(&ada, &chat, json!({ "text": "of ada", "client_id": "K1" })).await.expect(201)["id"],
        3
    );
    assert_eq!(send(&bob, &chat, body("of bob")).await.expect(200)["id"], 2);

    for _ in 0..2 {
        send(&ada, &chat, json!({ "text": "of ada" })).await.expect(201);
    }
}

async fn concurrent_sends_with_one_client_id_create_one_message(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    for round in 1..=5 {
        let body = json!({ "text": "once", "client_id": format!("k{round}") });
        let mut answers = join_all((0..16).map(|_| send(&ada, &chat, body.clone()))).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);

        let first = answers.remove(0);
        for answer in answers {
            assert!(answer.status == 200 || answer.status == 201, "{}", answer.body);
            assert_eq!(answer.body, first.body);
        }

        let texts = (0..8)
            .map(|number| json!({ "text": format!("{number}"), "client_id": format!("o{round}") }));
        let answers = join_all(texts.map(|body| send(&bob, &chat, body))).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
        assert_eq!(answers.iter().filter(|answer| answer.status == 409).count(), 7);
    }

    let ids = column(&ada.get(&path(&chat)).await.expect(200)["messages"], "id");
    assert_eq!(json!(ids), json!((1..=10).collect::<Vec<i64>>()), "a repeat leaves no gap");
}

async fn a_client_id_is_only_shown_to_its_sender(server: TestServer) {
    let (ada, bob, chat) = pair(&server).await;
    let sent = send(&ada, &chat, json!({ "text": "one", "client_id": "k1" })).await.expect(201);
    assert_eq!(sent["client_id"], "k1");
    let (one, changes) = (format!("{}/1", path(&chat)), format!("/chats/{chat}/changes"));
    for (user, key) in [(&ada, json!("k1")), (&bob, Value::Null)] {
        assert_eq!(user.get(&one).await.expect(200)["client_id"], key);
        assert_eq!(user.get(&path(&chat)).await.expect(200)["messages"][0]["client_id"], key);
        assert_eq!(user.get(&changes).await.expect(200)["messages"][0]["client_id"], key);
    }
    assert!(!bob.get("/chats").await.expect(200).to_string().contains("k1"));
}
