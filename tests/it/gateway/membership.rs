//! Events of a chat go to its members, and to no one else.

use serde_json::{Value, json};

use crate::support::{Socket, TestServer, User, everywhere};

everywhere!(
    a_new_chat_appears_on_all_sockets_of_all_members,
    a_new_member_gets_the_chat_and_then_its_events,
    a_removed_member_gets_no_more_events_and_the_others_get_member_left,
    leaving_ends_the_chat_on_all_sockets_of_the_user,
    a_member_that_joins_again_gets_the_chat_again,
    a_changed_role_is_sent_to_all_members,
    a_changed_name_is_sent_to_all_members,
    a_removed_chat_is_gone_for_all,
    a_private_chat_is_gone_only_for_the_user_that_removed_it,
    a_private_chat_opened_again_is_back_on_all_sockets_of_the_user,
    a_stranger_gets_no_events,
    every_kind_of_change_increases_the_rev_by_one,
    the_client_id_is_sent_only_to_the_sender,
);

async fn remove(owner: &User, chat: &str, who: &str) {
    owner.delete(&format!("/chats/{chat}/members/{who}")).await.expect(204);
}

#[track_caller]
fn assert_rev(frame: &Value, chat: &str, rev: i64) {
    assert_eq!((&frame["chat_id"], &frame["rev"]), (&json!(chat), &json!(rev)), "{frame}");
}

async fn a_new_chat_appears_on_all_sockets_of_all_members(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let (mut a1, mut a2) = (Socket::live(&ada).await, Socket::live(&ada).await);
    let (mut b, mut e) = (Socket::live(&bob).await, Socket::live(&eve).await);
    let mut unsynced = Socket::connect(&bob).await;

    for kind in ["group", "channel", "private"] {
        let chat = match kind {
            "group" => ada.group(&[&bob]).await,
            "channel" => ada.channel(&[&bob]).await,
            _ => ada.private_chat(&bob).await,
        };
        for (socket, user) in [(&mut a1, &ada), (&mut a2, &ada), (&mut b, &bob)] {
            let added = socket.expect("chat_added").await;
            assert_eq!((&added["chat"]["id"], &added["chat"]["rev"]), (&json!(chat), &json!(1)));
            assert_eq!(added["chat"], user.get(&format!("/chats/{chat}")).await.expect(200));
        }

        let event = ada.say(&chat, "first").await;
        for socket in [&mut a1, &mut a2, &mut b] {
            assert_rev(&socket.expect("new_message").await, &chat, event["rev"].as_i64().unwrap());
        }
    }

    e.expect_silence().await;
    unsynced.expect_silence().await;
}

async fn a_new_member_gets_the_chat_and_then_its_events(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    ada.say(&chat, "before").await;
    let (mut a, mut b1, mut b2) =
        (Socket::live(&ada).await, Socket::live(&bob).await, Socket::live(&bob).await);

    ada.add_member(&chat, &bob).await;
    let joined = a.expect("member_joined").await;
    assert_rev(&joined, &chat, 3);
    assert_eq!(
        (&joined["member"]["user"]["id"], &joined["member"]["role"]),
        (&json!(bob.id), &json!("member"))
    );

    for socket in [&mut b1, &mut b2] {
        let added = socket.expect("chat_added").await;
        assert_eq!((&added["chat"]["id"], &added["chat"]["rev"]), (&json!(chat), &json!(3)));
        assert_eq!(
            (&added["chat"]["unread_count"], &added["chat"]["role"]),
            (&json!(0), &json!("member"))
        );
    }

    ada.say(&chat, "after").await;
    for socket in [&mut a, &mut b1, &mut b2] {
        assert_rev(&socket.expect("new_message").await, &chat, 4);
    }
}

async fn a_removed_member_gets_no_more_events_and_the_others_get_member_left(server: TestServer) {
    let (ada, bob, cleo) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob, &cleo]).await;
    let (mut a, mut b, mut c) =
        (Socket::live(&ada).await, Socket::live(&bob).await, Socket::live(&cleo).await);

    remove(&ada, &chat, &bob.id).await;
    ada.say(&chat, "without bob").await;
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Fewer" })).await.expect(200);
    c.send(json!({ "type": "typing", "chat_id": chat })).await;

    for socket in [&mut a, &mut c] {
        let left = socket.expect("member_left").await;
        assert_rev(&left, &chat, 2);
        assert_eq!(left["user_id"], bob.id);
        assert_rev(&socket.expect("new_message").await, &chat, 3);
        assert_rev(&socket.expect("chat_changed").await, &chat, 4);
    }

    a.expect("typing").await;
    assert_eq!(b.expect("chat_gone").await["chat_id"], chat);
    b.expect_silence().await;

    let send = json!({ "type": "send_message", "chat_id": chat, "text": "x" });
    assert_eq!(b.ask(send).await["code"], "chat_not_found");
}

async fn leaving_ends_the_chat_on_all_sockets_of_the_user(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.channel(&[&bob]).await;
    let (mut a, mut b1, mut b2) =
        (Socket::live(&ada).await, Socket::live(&bob).await, Socket::live(&bob).await);

    remove(&bob, &chat, "me").await;
    ada.say(&chat, "later").await;

    assert_rev(&a.expect("member_left").await, &chat, 2);
    for socket in [&mut b1, &mut b2] {
        assert_eq!(socket.expect("chat_gone").await["chat_id"], chat);
        socket.expect_silence().await;
    }
}

async fn a_member_that_joins_again_gets_the_chat_again(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let mut b = Socket::live(&bob).await;

    for round in 0..3 {
        remove(&ada, &chat, &bob.id).await;
        ada.say(&chat, "among us").await;
        ada.add_member(&chat, &bob).await;
        ada.say(&chat, "welcome").await;

        b.expect("chat_gone").await;
        assert_eq!(b.expect("chat_added").await["chat"]["rev"], 4 + round * 4);
        let event = b.expect("new_message").await;
        assert_rev(&event, &chat, 5 + round * 4);
        assert_eq!(event["message"]["text"], "welcome");
    }
}

async fn a_changed_role_is_sent_to_all_members(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.channel(&[&bob]).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);

    ada.patch(&format!("/chats/{chat}/members/{}", bob.id), json!({ "role": "admin" }))
        .await
        .expect(200);
    for socket in [&mut a, &mut b] {
        let changed = socket.expect("member_changed").await;
        assert_rev(&changed, &chat, 2);
        assert_eq!(
            (&changed["member"]["user"]["id"], &changed["member"]["role"]),
            (&json!(bob.id), &json!("admin"))
        );
    }

    let send = json!({ "type": "send_message", "chat_id": chat, "text": "now I may" });
    assert_eq!(b.ask(send).await["type"], "ack");
}

async fn a_changed_name_is_sent_to_all_members(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);

    for _ in 0..2 {
        ada.patch(&format!("/chats/{chat}"), json!({ "name": "Renamed" })).await.expect(200);
    }

    for socket in [&mut a, &mut b] {
        let changed = socket.expect("chat_changed").await;
        assert_rev(&changed, &chat, 2);
        assert_eq!(changed["chat"]["name"], "Renamed");
        assert!(
            changed["chat"].get("role").is_none(),
            "fields that differ between members are left out"
        );
        socket.expect_silence().await;
    }
}

async fn a_removed_chat_is_gone_for_all(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);

    ada.delete(&format!("/chats/{chat}")).await.expect(204);
    for socket in [&mut a, &mut b] {
        assert_eq!(socket.expect("chat_gone").await["chat_id"], chat);
        socket.expect_silence().await;
    }

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 1 })).await;
    assert_eq!(replay[0]["type"], "chat_gone");
    assert_eq!(replay[1]["chats"], json!({}));
}

async fn a_private_chat_is_gone_only_for_the_user_that_removed_it(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    bob.say(&chat, "old").await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);

    ada.delete(&format!("/chats/{chat}")).await.expect(204);
    assert_eq!(a.expect("chat_gone").await["chat_id"], chat);
    b.expect_silence().await;

    let (_, replay) = Socket::resumed(&ada, json!({ &chat: 1 })).await;
    assert_eq!(
        replay[0],
        json!({ "type": "chat_gone", "chat_id": chat }),
        "removed messages are not sent again"
    );
    let (_, replay) = Socket::resumed(&ada, json!({})).await;
    assert_eq!((replay.len(), &replay[0]["chats"]), (1, &json!({ &chat: 2 })));

    bob.say(&chat, "new").await;
    assert_rev(&a.expect("new_message").await, &chat, 3);
    let (_, replay) = Socket::resumed(&ada, json!({ &chat: 1 })).await;
    assert_eq!((replay.len(), &replay[0]["message"]["text"]), (2, &json!("new")));
    let (_, replay) = Socket::resumed(&ada, json!({})).await;
    assert_eq!((replay.len(), &replay[0]["chat"]["id"]), (2, &json!(chat)));
}

async fn a_private_chat_opened_again_is_back_on_all_sockets_of_the_user(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    bob.say(&chat, "old").await;
    let (mut a1, mut a2, mut b) =
        (Socket::live(&ada).await, Socket::live(&ada).await, Socket::live(&bob).await);

    ada.private_chat(&bob).await;
    a1.expect_silence().await;

    ada.delete(&format!("/chats/{chat}")).await.expect(204);
    for socket in [&mut a1, &mut a2] {
        socket.expect("chat_gone").await;
    }

    ada.private_chat(&bob).await;
    let view = ada.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!((&view["rev"], &view["last_message"]), (&json!(2), &Value::Null));
    for socket in [&mut a1, &mut a2] {
        assert_eq!(socket.expect("chat_added").await["chat"], view);
    }

    ada.private_chat(&bob).await;
    a1.expect_silence().await;
    ada.delete(&format!("/chats/{chat}")).await.expect(204);
    bob.say(&chat, "new").await;
    for socket in [&mut a1, &mut a2] {
        socket.expect("chat_gone").await;
        assert_rev(&socket.expect("new_message").await, &chat, 3);
    }

    ada.private_chat(&bob).await;
    a1.expect_silence().await;
    bob.say(&chat, "newer").await;
    for socket in [&mut a1, &mut a2] {
        assert_rev(&socket.expect("new_message").await, &chat, 4);
    }

    for rev in [3, 4] {
        assert_rev(&b.expect("new_message").await, &chat, rev);
    }
    b.expect_silence().await;
}

async fn a_stranger_gets_no_events(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let mut e = Socket::live(&eve).await;

    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "one").await;
    ada.patch(&format!("/chats/{chat}/messages/1"), json!({ "text": "two" })).await.expect(200);
    bob.put(&format!("/chats/{chat}/read"), json!({ "message_id": 1 })).await.expect(204);
    remove(&ada, &chat, &bob.id).await;
    ada.delete(&format!("/chats/{chat}")).await.expect(204);

    e.expect_silence().await;
    let (_, replay) = Socket::resumed(&eve, json!({ &chat: 1 })).await;
    let gone = json!({ "type": "chat_gone", "chat_id": chat });
    assert_eq!(replay[0], gone, "the same as for an unknown chat");

    let unknown = "01890000-0000-7000-8000-000000000000";
    let (_, replay) = Socket::resumed(&eve, json!({ unknown: 1 })).await;
    assert_eq!((replay.len(), &replay[0]["type"]), (2, &json!("chat_gone")));
}

async fn every_kind_of_change_increases_the_rev_by_one(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    let mut a = Socket::live(&ada).await;
    let member = format!("/chats/{chat}/members/{}", bob.id);
    let message = format!("/chats/{chat}/messages/1");

    ada.say(&chat, "one").await;
    ada.patch(&message, json!({ "text": "two" })).await.expect(200);
    ada.add_member(&chat, &bob).await;
    ada.patch(&member, json!({ "role": "admin" })).await.expect(200);
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Other" })).await.expect(200);
    ada.delete(&message).await.expect(204);
    ada.delete(&member).await.expect(204);

    let kinds = [
        "new_message",
        "message_edited",
        "member_joined",
        "member_changed",
        "chat_changed",
        "message_removed",
        "member_left",
    ];

    for (rev, kind) in (2..).zip(kinds) {
        assert_rev(&a.expect(kind).await, &chat, rev);
    }
    a.expect_silence().await;
}

async fn the_client_id_is_sent_only_to_the_sender(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut a, mut b) = (Socket::live(&ada).await, Socket::live(&bob).await);

    let send = json!({ "text": "x", "client_id": "mine" });
    ada.post(&format!("/chats/{chat}/messages"), send).await.expect(201);
    ada.patch(&format!("/chats/{chat}/messages/1"), json!({ "text": "y" })).await.expect(200);
    for kind in ["new_message", "message_edited"] {
        assert_eq!(a.expect(kind).await["message"]["client_id"], "mine");
        assert!(b.expect(kind).await["message"]["client_id"].is_null());
    }

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 1 })).await;
    assert!(replay[0]["message"]["client_id"].is_null());
}
