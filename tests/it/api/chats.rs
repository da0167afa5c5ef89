//! Chats: creating, renaming and removing them, and who may do so.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{NOBODY, column, indistinguishable, on_another};
use crate::support::{Answer, TestServer, User, everywhere, id};

everywhere!(
    each_user_has_one_self_chat,
    both_users_get_the_same_private_chat,
    concurrent_requests_of_both_users_create_one_private_chat,
    concurrent_requests_create_one_self_chat,
    a_group_has_its_members_from_the_start,
    a_channel_has_no_limit_of_members,
    a_group_has_a_member_limit,
    an_invalid_chat_is_refused_with_its_fields,
    a_chat_with_unknown_users_is_refused,
    a_private_chat_is_named_after_the_other_user,
    renaming_is_for_owners_and_admins,
    renaming_to_the_same_name_is_no_change,
    removing_a_group_removes_it_for_all,
    only_its_owner_removes_a_group_or_channel,
    removing_a_private_chat_clears_the_history_only_for_the_caller,
    a_removed_private_chat_reappears_with_the_next_message_or_when_reopened,
    removing_the_self_chat_clears_its_history,
    chats_of_a_user_are_limited,
    a_foreign_chat_is_answered_like_an_unknown_chat,
);

async fn make(user: &User, body: Value) -> Answer {
    user.post("/chats", body).await
}

async fn each_user_has_one_self_chat(server: TestServer) {
    let (ada, bob) = (server.user_named("ada").await, server.user().await);
    let first = make(&ada, json!({ "kind": "self" })).await.expect(201);
    assert_eq!((&first["kind"], &first["name"]), (&json!("self"), &json!("ada")));
    assert_eq!(
        (&first["member_count"], &first["role"], &first["peer"]),
        (&json!(1), &json!("owner"), &Value::Null)
    );

    let again = make(&ada, json!({ "kind": "self", "member_ids": [] })).await.expect(200);
    assert_eq!(first, again);
    assert_ne!(make(&bob, json!({ "kind": "self" })).await.expect(201)["id"], first["id"]);
    ada.patch("/users/me", json!({ "name": "Lovelace" })).await.expect(200);
    assert_eq!(ada.get(&format!("/chats/{}", id(&first))).await.expect(200)["name"], "Lovelace");
    ada.say(&id(&first), "a note").await;
    ada.post(&format!("/chats/{}/members", id(&first)), json!({ "user_id": bob.id }))
        .await
        .refused(409, "wrong_chat_kind");
}

async fn both_users_get_the_same_private_chat(server: TestServer) {
    let (ada, bob, cid) =
        (server.user_named("ada").await, server.user_named("bob").await, server.user().await);
    let first = make(&ada, json!({ "kind": "private", "member_ids": [bob.id] })).await.expect(201);
    assert_eq!(first["peer"], json!({ "id": bob.id, "login": "bob", "name": "bob" }));
    assert_eq!(
        (&first["name"], &first["role"], &first["member_count"]),
        (&json!("bob"), &json!("member"), &json!(2))
    );

    let again = make(&ada, json!({ "kind": "private", "member_ids": [bob.id] })).await.expect(200);
    assert_eq!(first, again);

    let mirrored =
        make(&bob, json!({ "kind": "private", "member_ids": [ada.id] })).await.expect(200);
    assert_eq!((&mirrored["id"], &mirrored["name"]), (&first["id"], &json!("ada")));
    assert_ne!(ada.private_chat(&cid).await, id(&first));
}

async fn concurrent_requests_of_both_users_create_one_private_chat(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    for _ in 0..3 {
        let cid = server.user().await;
        let sides = (0..16).map(|number| if number % 2 == 0 { (&ada, &cid) } else { (&cid, &ada) });
        let asked = sides
            .map(|(user, peer)| make(user, json!({ "kind": "private", "member_ids": [peer.id] })));
        one_of_all(&join_all(asked).await);
        assert_eq!(cid.get("/chats").await.expect(200)["chats"].as_array().unwrap().len(), 1);
    }
    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([]));
}

async fn concurrent_requests_create_one_self_chat(server: TestServer) {
    let ada = server.user().await;
    one_of_all(&join_all((0..8).map(|_| make(&ada, json!({ "kind": "self" })))).await);
}

/// Fails unless all answers show one chat, and exactly one of the requests created it.
#[track_caller]
fn one_of_all(answers: &[Answer]) {
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 201).count(),
        1,
        "exactly one made it"
    );
    for answer in answers {
        assert!(answer.status == 200 || answer.status == 201, "{}", answer.body);
        assert_eq!(answer.body["id"], answers[0].body["id"]);
    }
}

async fn a_group_has_its_members_from_the_start(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let twice = json!([bob.id, cid.id, bob.id, ada.id]);
    let chat = make(&ada, json!({ "kind": "group", "name": " Crew ", "member_ids": twice }))
        .await
        .expect(201);
    assert_eq!(
        (&chat["name"], &chat["role"], &chat["rev"]),
        (&json!("Crew"), &json!("owner"), &json!(1))
    );
    assert_eq!((&chat["member_count"], &chat["last_message_id"]), (&json!(3), &json!(0)));
    assert_eq!((&chat["last_message"], &chat["unread_count"]), (&Value::Null, &json!(0)));

    for member in [&bob, &cid] {
        let seen = member.get(&format!("/chats/{}", id(&chat))).await.expect(200);
        assert_eq!((&seen["name"], &seen["role"]), (&json!("Crew"), &json!("member")));
    }

    let members = bob.get(&format!("/chats/{}/members", id(&chat))).await.expect(200);
    assert_eq!(column(&members["members"], "role"), ["owner", "member", "member"]);
    make(&ada, json!({ "kind": "group", "name": "Crew", "member_ids": [bob.id] }))
        .await
        .expect(201);
}

async fn a_channel_has_no_limit_of_members(server: TestServer) {
    on_another(
        &server,
        |settings| settings.group_members_max = Some(2),
        |server| async move {
            let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
            let channel = ada.channel(&[&bob, &cid]).await;
            let dan = server.user().await;
            ada.post(&format!("/chats/{channel}/members"), json!({ "user_id": dan.id }))
                .await
                .expect(201);
            assert_eq!(dan.get(&format!("/chats/{channel}")).await.expect(200)["member_count"], 4);
        },
    )
    .await;
}

async fn a_group_has_a_member_limit(server: TestServer) {
    on_another(
        &server,
        |settings| settings.group_members_max = Some(3),
        |server| async move {
            let (ada, bob) = (server.user().await, server.user().await);
            let (cid, dan) = (server.user().await, server.user().await);
            let four =
                json!({ "kind": "group", "name": "Four", "member_ids": [bob.id, cid.id, dan.id] });
            make(&ada, four).await.refused(409, "member_limit_reached");

            let three =
                json!({ "kind": "group", "name": "Three", "member_ids": [bob.id, cid.id, ada.id] });
            let chat = id(&make(&ada, three).await.expect(201));
            let path = format!("/chats/{chat}/members");
            ada.post(&path, json!({ "user_id": dan.id }))
                .await
                .refused(409, "member_limit_reached");
            bob.delete(&format!("{path}/me")).await.expect(204);

            let rush =
                join_all([&bob, &dan].map(|user| ada.post(&path, json!({ "user_id": user.id }))))
                    .await;
            assert_eq!(
                rush.iter().filter(|answer| answer.status == 201).count(),
                1,
                "two join at once, and one fits"
            );
            assert_eq!(ada.get(&format!("/chats/{chat}")).await.expect(200)["member_count"], 3);
        },
    )
    .await;
}

async fn an_invalid_chat_is_refused_with_its_fields(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let refused =
        async |body: Value, fields: &[&str]| make(&ada, body).await.refused_fields(fields);
    refused(json!({}), &["kind"]).await;
    refused(json!({ "kind": "party" }), &["kind"]).await;
    refused(json!({ "kind": "self", "member_ids": [bob.id] }), &["member_ids"]).await;
    refused(json!({ "kind": "self", "name": "Mine" }), &["name"]).await;
    refused(json!({ "kind": "private" }), &["member_ids"]).await;
    refused(json!({ "kind": "private", "member_ids": [] }), &["member_ids"]).await;
    refused(json!({ "kind": "private", "member_ids": [ada.id] }), &["member_ids"]).await;
    refused(json!({ "kind": "private", "member_ids": [bob.id, ada.id] }), &["member_ids"]).await;
    refused(json!({ "kind": "private", "member_ids": [bob.id], "name": "Us" }), &["name"]).await;
    refused(json!({ "kind": "private", "name": "Us" }), &["member_ids", "name"]).await;

    for name in ["", " \u{3000}", "a\u{0}b", "a\u{7f}", &"é".repeat(101)] {
        refused(json!({ "kind": "group", "name": name }), &["name"]).await;
    }
    refused(json!({ "kind": "channel" }), &["name"]).await;
    refused(
        json!({ "kind": "group", "name": "Crew", "member_ids": [bob.id, "x"] }),
        &["member_ids[1]"],
    )
    .await;
    refused(json!({ "kind": "group", "name": "Crew", "member_ids": bob.id }), &["member_ids"])
        .await;
    make(&ada, json!({ "kind": "group", "name": "𝄞".repeat(100) })).await.expect(201);

    assert_eq!(
        ada.get("/chats").await.expect(200)["chats"].as_array().unwrap().len(),
        1,
        "only the last was made"
    );
}

async fn a_chat_with_unknown_users_is_refused(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    make(&ada, json!({ "kind": "private", "member_ids": [NOBODY] }))
        .await
        .refused_fields(&["member_ids[0]"]);

    for kind in ["group", "channel"] {
        let answer =
            make(&ada, json!({ "kind": kind, "name": "Crew", "member_ids": [bob.id, NOBODY] }))
                .await;
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(answer.body["errors"][0]["field"].as_str().unwrap().starts_with("member_ids["));
    }

    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([]));
}

async fn a_private_chat_is_named_after_the_other_user(server: TestServer) {
    let (ada, bob) = (server.user_named("ada").await, server.user_named("bob").await);
    let private = ada.private_chat(&bob).await;
    bob.patch("/users/me", json!({ "name": "Bob B." })).await.expect(200);

    let seen = ada.get(&format!("/chats/{private}")).await.expect(200);
    assert_eq!(
        (&seen["name"], &seen["peer"]["name"]),
        (&json!("Bob B."), &json!("Bob B.")),
        "the present name"
    );
    assert_eq!(bob.get(&format!("/chats/{private}")).await.expect(200)["name"], "ada");

    let group = ada.get(&format!("/chats/{}", ada.group(&[&bob]).await)).await.expect(200);
    assert_eq!((&group["name"], &group["peer"]), (&json!("Crew"), &Value::Null));
    ada.patch(&format!("/chats/{private}"), json!({ "name": "Us" }))
        .await
        .refused(409, "wrong_chat_kind");
}

async fn renaming_is_for_owners_and_admins(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    for chat in [ada.group(&[&bob, &cid]).await, ada.channel(&[&bob, &cid]).await] {
        let path = format!("/chats/{chat}");
        ada.patch(&format!("{path}/members/{}", bob.id), json!({ "role": "admin" }))
            .await
            .expect(200);
        cid.patch(&path, json!({ "name": "Mutiny" })).await.refused(403, "not_allowed");

        let renamed = bob.patch(&path, json!({ "name": " Ship " })).await.expect(200);
        assert_eq!((&renamed["name"], &renamed["rev"]), (&json!("Ship"), &json!(3)));
        assert_eq!(cid.get(&path).await.expect(200)["name"], "Ship");
        for bad in ["", "a\u{0}", &"x".repeat(101)] {
            ada.patch(&path, json!({ "name": bad })).await.refused_fields(&["name"]);
        }

        ada.patch(&path, json!({})).await.refused_fields(&["name"]);
        assert_eq!(ada.get(&path).await.expect(200)["rev"], 3, "a refused rename changes nothing");
    }
}

async fn renaming_to_the_same_name_is_no_change(server: TestServer) {
    let ada = server.user().await;
    let path = format!("/chats/{}", ada.group(&[]).await);
    let same = ada.patch(&path, json!({ "name": "Crew" })).await.expect(200);
    assert_eq!((&same["name"], &same["rev"]), (&json!("Crew"), &json!(1)));
}

async fn removing_a_group_removes_it_for_all(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    for kind in ["group", "channel"] {
        let chat =
            if kind == "group" { ada.group(&[&bob]).await } else { ada.channel(&[&bob]).await };
        ada.say(&chat, "soon gone").await;

        let path = format!("/chats/{chat}");
        ada.delete(&path).await.expect(204);

        for user in [&ada, &bob] {
            user.get(&path).await.refused(404, "chat_not_found");
            user.get(&format!("{path}/messages")).await.refused(404, "chat_not_found");
            user.post(&format!("{path}/messages"), json!({ "text": "hello?" }))
                .await
                .refused(404, "chat_not_found");
            assert_eq!(user.get("/chats").await.expect(200)["chats"], json!([]));
        }
        ada.delete(&path).await.refused(404, "chat_not_found");
    }
}

async fn only_its_owner_removes_a_group_or_channel(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    for chat in [ada.group(&[&bob, &cid]).await, ada.channel(&[&bob, &cid]).await] {
        let path = format!("/chats/{chat}");
        ada.patch(&format!("{path}/members/{}", bob.id), json!({ "role": "admin" }))
            .await
            .expect(200);
        for user in [&bob, &cid] {
            user.delete(&path).await.refused(403, "not_allowed");
        }
        assert_eq!(ada.get(&path).await.expect(200)["rev"], 2);
    }
}

async fn removing_a_private_chat_clears_the_history_only_for_the_caller(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let path = format!("/chats/{chat}");
    for text in ["one", "two"] {
        bob.say(&chat, text).await;
    }

    let before = bob.get(&path).await.expect(200);
    ada.delete(&path).await.expect(204);
    assert_eq!(ada.get("/chats").await.expect(200)["chats"], json!([]));
    assert!(ada.texts(&chat, "").await.is_empty());
    assert!(ada.texts(&chat, "?after=0").await.is_empty());
    ada.get(&format!("{path}/messages/1")).await.refused(404, "message_not_found");

    let changes = ada.get(&format!("{path}/changes")).await.expect(200);
    assert_eq!(changes["messages"], json!([]), "the changes don't show them either");
    assert_eq!(
        bob.get(&path).await.expect(200),
        before,
        "nothing has changed for the other member"
    );
    assert_eq!(bob.texts(&chat, "").await, ["one", "two"]);
    assert_eq!(bob.get("/chats").await.expect(200)["chats"].as_array().unwrap().len(), 1);
}

async fn a_removed_private_chat_reappears_with_the_next_message_or_when_reopened(
    server: TestServer,
) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let path = format!("/chats/{chat}");
    bob.say(&chat, "one").await;
    ada.delete(&path).await.expect(204);

    let empty = make(&ada, json!({ "kind": "private", "member_ids": [bob.id] })).await.expect(200);
    assert_eq!((id(&empty), &empty["last_message"]), (chat.clone(), &Value::Null));
    assert_eq!((&empty["unread_count"], &empty["last_message_id"]), (&json!(0), &json!(1)));
    assert_eq!(ada.get("/chats").await.expect(200)["chats"], json!([empty]));
    ada.delete(&path).await.expect(204);
    bob.say(&chat, "two").await;

    let inbox = ada.get("/chats").await.expect(200);
    assert_eq!(
        (&inbox["chats"][0]["id"], &inbox["chats"][0]["unread_count"]),
        (&json!(chat), &json!(1))
    );
    assert_eq!(inbox["chats"][0]["last_message"]["text"], "two");
    assert_eq!(ada.texts(&chat, "").await, ["two"]);
    assert_eq!(bob.texts(&chat, "").await, ["one", "two"]);
}

async fn removing_the_self_chat_clears_its_history(server: TestServer) {
    let ada = server.user().await;
    let chat = id(&make(&ada, json!({ "kind": "self" })).await.expect(201));
    ada.say(&chat, "old").await;
    ada.delete(&format!("/chats/{chat}")).await.expect(204);
    assert_eq!(ada.get("/chats").await.expect(200)["chats"], json!([]));
    assert_eq!(id(&make(&ada, json!({ "kind": "self" })).await.expect(200)), chat);
    assert_eq!(ada.say(&chat, "new").await["id"], 2, "no message id is given twice");
    assert_eq!(ada.texts(&chat, "").await, ["new"]);
}

async fn chats_of_a_user_are_limited(server: TestServer) {
    on_another(
        &server,
        |settings| settings.chats_per_user_max = Some(2),
        |server| async move {
            let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
            let group = ada.group(&[]).await;
            let private = ada.private_chat(&bob).await;
            for body in [json!({ "kind": "self" }), json!({ "kind": "group", "name": "Third" })] {
                make(&ada, body).await.refused(409, "chat_limit_reached");
            }

            make(&ada, json!({ "kind": "private", "member_ids": [cid.id] }))
                .await
                .refused(409, "chat_limit_reached");

            let forced = json!({ "kind": "group", "name": "Forced", "member_ids": [ada.id] });
            make(&cid, forced).await.refused(409, "chat_limit_reached");

            let other = cid.group(&[]).await;
            let add = json!({ "user_id": ada.id });
            cid.post(&format!("/chats/{other}/members"), add.clone())
                .await
                .refused(409, "chat_limit_reached");
            assert_eq!(ada.private_chat(&bob).await, private, "the existing chat is found");
            ada.delete(&format!("/chats/{group}")).await.expect(204);
            cid.post(&format!("/chats/{other}/members"), add).await.expect(201);

            let rush =
                join_all((0..6).map(|_| make(&bob, json!({ "kind": "group", "name": "Rush" }))))
                    .await;
            assert_eq!(
                rush.iter().filter(|answer| answer.status == 201).count(),
                2,
                "the limit holds for concurrent requests"
            );
        },
    )
    .await;
}

async fn a_foreign_chat_is_answered_like_an_unknown_chat(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let private = ada.private_chat(&bob).await;
    ada.say(&private, "secret").await;
    for path in ["", "/members", "/messages", "/messages/1", "/changes"] {
        let foreign = eve.get(&format!("/chats/{private}{path}")).await;
        foreign.refused(404, "chat_not_found");
        indistinguishable(&foreign, &eve.get(&format!("/chats/{NOBODY}{path}")).await);
    }
}
