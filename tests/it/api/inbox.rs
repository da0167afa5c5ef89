//! The inbox: `GET /chats`.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{column, on_another, pages};
use crate::support::{TestServer, User, everywhere, id};

everywhere!(
    the_chat_with_the_last_activity_comes_first,
    the_inbox_is_read_page_by_page_without_repeats_or_gaps,
    chats_created_at_once_keep_their_order_across_pages,
    sending_moves_the_senders_read_marker_and_counts_as_unread_for_others,
    joining_sets_the_marker_to_the_end,
    the_last_message_is_a_snippet,
    an_edited_or_removed_last_message_shows_in_the_inbox,
    an_edited_older_message_does_not_show_in_the_inbox,
    an_unchanged_inbox_is_304,
    a_page_is_at_most_as_long_as_configured,
    the_inbox_and_a_chat_show_the_same,
);

async fn inbox(user: &User) -> Vec<Value> {
    user.get("/chats").await.expect(200)["chats"].as_array().unwrap().clone()
}

async fn order(user: &User) -> Vec<Value> {
    column(&json!(inbox(user).await), "id")
}

async fn the_chat_with_the_last_activity_comes_first(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let mut chats = Vec::new();
    for peer in [&bob, &cid] {
        chats.push(ada.private_chat(peer).await);
        server.advance(Duration::from_secs(1));
    }

    chats.push(ada.group(&[&bob]).await);
    assert_eq!(order(&ada).await, [chats[2].clone(), chats[1].clone(), chats[0].clone()]);
    server.advance(Duration::from_secs(1));
    bob.say(&chats[0], "hello").await;
    assert_eq!(order(&ada).await, [chats[0].clone(), chats[2].clone(), chats[1].clone()]);
    server.advance(Duration::from_secs(1));
    ada.patch(&format!("/chats/{}", chats[2]), json!({ "name": "Other" })).await.expect(200);
    ada.put(&format!("/chats/{}/read", chats[0]), json!({ "message_id": 1 })).await.expect(204);
    assert_eq!(order(&ada).await[0], chats[0], "a name or a read marker is no activity");
}

async fn the_inbox_is_read_page_by_page_without_repeats_or_gaps(server: TestServer) {
    let ada = server.user().await;
    for _ in 0..7 {
        ada.group(&[]).await;
        server.advance(Duration::from_millis(5));
    }

    let all = order(&ada).await;
    let split = pages(&ada, "/chats?", "chats", 3).await;
    assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(column(&json!(split.concat()), "id"), all);

    let first = ada.get("/chats?limit=3").await.expect(200);
    // A chat that moves to the top between two pages neither repeats nor hides another.
    ada.say(all[5].as_str().unwrap(), "up").await;

    let after = first["next_cursor"].as_str().unwrap();
    let second = ada.get(&format!("/chats?limit=9&after={after}")).await.expect(200);
    assert_eq!(column(&second["chats"], "id"), [all[3].clone(), all[4].clone(), all[6].clone()]);
    assert!(second["next_cursor"].is_null());
}

async fn chats_created_at_once_keep_their_order_across_pages(server: TestServer) {
    let ada = server.user().await;
    let made = futures_util::future::join_all((0..24).map(|_| ada.group(&[]))).await;
    let split = pages(&ada, "/chats?", "chats", 2).await.concat();
    assert_eq!(split, inbox(&ada).await);
    assert_eq!(split.len(), made.len());
}

async fn sending_moves_the_senders_read_marker_and_counts_as_unread_for_others(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for text in ["one", "two", "three"] {
        ada.say(&chat, text).await;
    }

    let counts = async |user: &User| {
        let chat = inbox(user).await.remove(0);
        ["last_message_id", "last_read_message_id", "unread_count"]
            .map(|key| chat[key].as_i64().unwrap())
    };

    assert_eq!(counts(&ada).await, [3, 3, 0]);
    assert_eq!(counts(&bob).await, [3, 0, 3]);
    bob.put(&format!("/chats/{chat}/read"), json!({ "message_id": 2 })).await.expect(204);
    assert_eq!(counts(&bob).await, [3, 2, 1]);
    bob.say(&chat, "four").await;
    assert_eq!(counts(&bob).await, [4, 4, 0]);
    assert_eq!(counts(&ada).await, [4, 3, 1]);
}

async fn joining_sets_the_marker_to_the_end(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    for text in ["one", "two"] {
        ada.say(&chat, text).await;
    }

    let add = json!({ "user_id": bob.id });
    let member = ada.post(&format!("/chats/{chat}/members"), add).await.expect(201);
    assert_eq!(member["last_read_message_id"], 2);

    let seen = inbox(&bob).await.remove(0);
    assert_eq!((&seen["unread_count"], &seen["last_read_message_id"]), (&json!(0), &json!(2)));
    assert_eq!(bob.texts(&chat, "").await, ["one", "two"], "a member may read the whole history");
}

async fn the_last_message_is_a_snippet(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let sent = ada.say(&chat, &"𝄞".repeat(4096)).await;
    let seen = inbox(&bob).await.remove(0);
    let last = &seen["last_message"];
    assert_eq!(
        (&last["id"], &last["sender_id"], &last["kind"]),
        (&json!(1), &json!(ada.id), &json!("text"))
    );
    assert_eq!((&last["sent_at"], &seen["last_message_at"]), (&sent["sent_at"], &sent["sent_at"]));
    assert_eq!(last["text"], "𝄞".repeat(140), "cut between characters");
}

async fn an_edited_or_removed_last_message_shows_in_the_inbox(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "before").await;

    let path = format!("/chats/{chat}/messages/1");
    ada.patch(&path, json!({ "text": "after" })).await.expect(200);
    assert_eq!(inbox(&bob).await[0]["last_message"]["text"], "after");
    ada.delete(&path).await.expect(204);

    let seen = inbox(&bob).await.remove(0);
    assert_eq!(
        (&seen["last_message"]["id"], &seen["last_message"]["text"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(seen["unread_count"], 1, "the removed message still counts");
}

async fn an_edited_older_message_does_not_show_in_the_inbox(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    for text in ["first", "last"] {
        ada.say(&chat, text).await;
    }
    ada.patch(&format!("/chats/{chat}/messages/1"), json!({ "text": "edited" })).await.expect(200);
    ada.delete(&format!("/chats/{chat}/messages/1")).await.expect(204);
    assert_eq!(inbox(&ada).await[0]["last_message"]["text"], "last");
}

async fn an_unchanged_inbox_is_304(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let first = bob.get("/chats").await;
    let etag = first.header("etag").expect("an ETag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong, quoted tag: {etag}");

    let ask = async |user: &User, tag: &str| {
        user.send(user.request(Method::GET, "/chats").header("if-none-match", tag)).await
    };
    for tag in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()] {
        let unchanged = ask(&bob, &tag).await;
        assert_eq!((unchanged.status, &unchanged.body), (304, &Value::Null), "{tag}");
        assert_eq!(unchanged.header("etag"), Some(etag.as_str()));
    }

    assert_eq!(
        ask(&ada, &etag).await.status,
        200,
        "the tag of one user's inbox does not fit another's"
    );
    assert_eq!(ask(&bob, "\"other\"").await.status, 200);
    ada.say(&chat, "new").await;

    let changed = ask(&bob, &etag).await;
    assert_eq!(changed.status, 200);

    let etag = changed.header("etag").unwrap().to_owned();
    bob.put(&format!("/chats/{chat}/read"), json!({ "message_id": 1 })).await.expect(204);
    assert_eq!(ask(&bob, &etag).await.status, 200, "a read marker is a change");
}

async fn a_page_is_at_most_as_long_as_configured(server: TestServer) {
    on_another(
        &server,
        |settings| settings.page_max = Some(2),
        |server| async move {
            let ada = server.user().await;
            let chat = ada.group(&[&server.user().await, &server.user().await]).await;
            for _ in 0..2 {
                ada.group(&[]).await;
            }

            for text in ["one", "two", "three"] {
                ada.say(&chat, text).await;
            }

            for (path, key, word) in [
                ("/chats".to_owned(), "chats", "limit"),
                ("/users".to_owned(), "users", "limit"),
                (format!("/chats/{chat}/members"), "members", "limit"),
                (format!("/chats/{chat}/messages"), "messages", "max"),
                (format!("/chats/{chat}/changes"), "messages", "max"),
            ] {
                for asked in ["", "=2", "=3", "=100", "=9223372036854775807"] {
                    let query =
                        if asked.is_empty() { String::new() } else { format!("?{word}{asked}") };
                    let query = if key == "messages" && path.ends_with("changes") {
                        format!("{query}{}after_rev=1", if query.is_empty() { "?" } else { "&" })
                    } else {
                        query
                    };
                    let page = ada.get(&format!("{path}{query}")).await.expect(200);
                    assert_eq!(page[key].as_array().unwrap().len(), 2, "{path}{query}");
                }
                for bad in ["0", "-1", "x", "", "1.5", "9223372036854775808"] {
                    ada.get(&format!("{path}?{word}={bad}")).await.refused_fields(&[word]);
                }
            }
        },
    )
    .await;
}

async fn the_inbox_and_a_chat_show_the_same(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let own = id(&ada.post("/chats", json!({ "kind": "self" })).await.expect(201));
    let chats =
        [ada.private_chat(&bob).await, ada.group(&[&bob]).await, ada.channel(&[&bob]).await, own];
    for chat in &chats {
        ada.say(chat, "hello").await;
    }

    for user in [&ada, &bob] {
        for listed in inbox(user).await {
            assert_eq!(user.get(&format!("/chats/{}", id(&listed))).await.expect(200), listed);
        }
    }
}
