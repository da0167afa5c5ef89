//! Accounts: registration, the directory, changing and removing the caller's own account.

use serde_json::{Value, json};

use super::{NOBODY, PASSWORD, column, granted, log_in, newcomer, pages, server_of};
use crate::support::{TestServer, everywhere};

everywhere!(
    registering_gives_an_account_and_a_session,
    a_registration_out_of_bounds_names_every_field,
    the_longest_and_shortest_of_everything_registers,
    a_login_that_is_taken_in_any_case_is_refused,
    of_concurrent_registrations_of_one_login_one_succeeds,
    the_directory_finds_by_the_beginning_of_login_or_name_in_any_case,
    the_directory_is_read_page_by_page,
    a_user_is_shown_by_id,
    name_and_login_change_and_the_rest_stays,
    another_login_or_password_needs_the_current_one,
    another_password_ends_the_other_sessions,
    a_change_without_fields_is_refused,
    removing_the_account_needs_its_password,
    a_removed_account_is_logged_out_everywhere_and_its_login_is_free,
    a_removed_accounts_chats_get_a_new_owner_and_keep_its_messages,
    the_other_user_of_a_private_chat_sees_that_the_account_is_removed,
);

/// Fails if the answer about a user has fields that only this user may read.
#[track_caller]
fn has_no_secrets(user: &Value) {
    let mut keys: Vec<&str> = user.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["created_at", "id", "login", "name"]);
}

/// The directory's path with this query, percent-encoded.
fn search(query: &str) -> String {
    format!(
        "/users?{}",
        form_urlencoded::Serializer::new(String::new()).append_pair("query", query).finish()
    )
}

async fn registering_gives_an_account_and_a_session(server: TestServer) {
    let (code, stranger) = (server.invite(1).await, server.stranger());
    let body = json!({
        "invite": code, "login": " Ada.L ", "password": PASSWORD, "name": "  Ada Lovelace\n"
    });
    let grant = stranger.post("/users", body).await.expect(201);
    has_no_secrets(&grant["user"]);
    assert_eq!(
        (&grant["user"]["login"], &grant["user"]["name"]),
        (&json!("ada.l"), &json!("Ada Lovelace"))
    );
    assert_eq!(grant["session"]["current"], true);
    assert!(grant["token"].as_str().unwrap().starts_with("sl_"), "secret scanners find the prefix");

    let ada = stranger.with_token(grant["token"].as_str().unwrap());
    let mut me = ada.get("/users/me").await.expect(200);
    assert_eq!(me.as_object_mut().unwrap().remove("refuse_strangers"), Some(json!(false)));
    assert_eq!(me, grant["user"]);
    stranger.post("/sessions", json!({ "login": "ADA.L", "password": PASSWORD })).await.expect(201);
}

async fn a_registration_out_of_bounds_names_every_field(server: TestServer) {
    let (code, stranger) = (server.invite(1).await, server.stranger());
    let good = newcomer(&code, "ada");
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        stranger.post("/users", body)
    };

    for login in [
        "",
        " ",
        "-ada",
        "a da",
        "ädä",
        "a\u{0}b",
        "ada@example.org",
        "ada/../bob",
        &"a".repeat(65),
    ] {
        with("login", json!(login)).await.refused_fields(&["login"]);
    }

    for name in ["", " \u{3000}\n", "a\u{0}b", "a\u{7}b", "a\nb", &"é".repeat(101)] {
        with("name", json!(name)).await.refused_fields(&["name"]);
    }
    for password in ["", "seven77", &"p".repeat(129), "password1", "QWERTYUIOP"] {
        with("password", json!(password)).await.refused_fields(&["password"]);
    }

    let login_as_password =
        json!({ "invite": code, "login": "lovelace1", "password": "LoveLace1", "name": "Ada" });
    stranger.post("/users", login_as_password).await.refused_fields(&["password"]);

    let all = json!({ "invite": code, "login": "-", "password": "short", "name": "" });
    stranger.post("/users", all).await.refused_fields(&["login", "name", "password"]);

    for field in ["invite", "login", "password", "name"] {
        with(field, Value::Null).await.refused_fields(&[field]);
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        stranger.post("/users", body).await.refused_fields(&[field]);
    }

    with("admin", json!(true)).await.refused_fields(&["admin"]);
    stranger.post("/users", good.clone()).await.expect(201);
}

async fn the_longest_and_shortest_of_everything_registers(server: TestServer) {
    let (code, stranger) = (server.invite(2).await, server.stranger());
    let short = json!({ "invite": code, "login": "a", "password": "eight888", "name": "é" });
    stranger.post("/users", short).await.expect(201);
    let (login, password, name) = ("a".repeat(64), "𝄞".repeat(128), "𝄞".repeat(100));
    let long = json!({ "invite": code, "login": login, "password": password, "name": name });
    assert_eq!(stranger.post("/users", long).await.expect(201)["user"]["name"], name);
    stranger.post("/sessions", json!({ "login": login, "password": password })).await.expect(201);
}

async fn a_login_that_is_taken_in_any_case_is_refused(server: TestServer) {
    let (code, stranger) = (server.invite(9).await, server.stranger());
    stranger.post("/users", newcomer(&code, "ada")).await.expect(201);
    for login in ["ada", "ADA", " Ada "] {
        stranger.post("/users", newcomer(&code, login)).await.refused(409, "login_taken");
    }
    let bob = server.user_named("bob").await;
    let body = json!({ "login": "Ada", "current_password": bob.password });
    bob.patch("/users/me", body).await.refused(409, "login_taken");
    let own = json!({ "login": "BOB", "current_password": bob.password });
    assert_eq!(bob.patch("/users/me", own).await.expect(200)["login"], "bob");
}

async fn of_concurrent_registrations_of_one_login_one_succeeds(server: TestServer) {
    let (code, stranger) = (server.invite(9).await, server.stranger());
    let wanting = (0..4).map(|_| stranger.post("/users", newcomer(&code, "ada")));
    let answers = futures_util::future::join_all(wanting).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        answer.refused(409, "login_taken");
    }
}

async fn the_directory_finds_by_the_beginning_of_login_or_name_in_any_case(server: TestServer) {
    let ada = server.user_named("ada").await;
    for login in ["adam", "bob", "zed", "under_score"] {
        server.user_named(login).await;
    }

    let zed = server.user_named("zoe").await;
    zed.patch("/users/me", json!({ "name": "Ädelheid % of_all" })).await.expect(200);

    let found = async |query: &str| {
        let page = ada.get(&search(query)).await.expect(200);
        column(&page["users"], "login")
    };
    assert_eq!(found("ada").await, ["ada", "adam"]);
    assert_eq!(found(" ADA ").await, ["ada", "adam"]);
    assert_eq!(found("äDEL").await, ["zoe"]);
    assert_eq!(found("zo").await, ["zoe"], "the login is still found");
    assert_eq!(found("").await, ["ada", "adam", "bob", "under_score", "zed", "zoe"]);

    for unmatched in ["x", "da", "%", "_", "a%", "under%", "\\", "'", "\u{10FFFF}"] {
        assert!(found(unmatched).await.is_empty(), "{unmatched:?}");
    }
    for query in ["a\u{0}", &"a".repeat(101)] {
        ada.get(&search(query)).await.refused_fields(&["query"]);
    }

    let page = ada.get("/users?query=bob").await.expect(200);
    has_no_secrets(&page["users"][0]);
}

async fn the_directory_is_read_page_by_page(server: TestServer) {
    let ada = server.user_named("m1").await;
    for login in ["m5", "m3", "m2", "m4", "x1"] {
        server.user_named(login).await;
    }

    let all = pages(&ada, "/users?query=m&", "users", 2).await;
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);

    let logins: Vec<&Value> = all.iter().flatten().map(|user| &user["login"]).collect();
    assert_eq!(logins, ["m1", "m2", "m3", "m4", "m5"]);
    assert_eq!(
        pages(&ada, "/users?query=m&", "users", 5).await.len(),
        1,
        "no empty page at the end"
    );
}

async fn a_user_is_shown_by_id(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let shown = ada.get(&format!("/users/{}", bob.id)).await.expect(200);
    has_no_secrets(&shown);
    assert_eq!(shown["login"], bob.login);
    for id in [NOBODY, "nonsense", "%00", "1"] {
        ada.get(&format!("/users/{id}")).await.refused(404, "user_not_found");
    }
}

async fn name_and_login_change_and_the_rest_stays(server: TestServer) {
    let ada = server.user_named("ada").await;
    let before = ada.get("/users/me").await.expect(200);
    let renamed = ada.patch("/users/me", json!({ "name": " Ada L. " })).await.expect(200);
    assert_eq!((&renamed["name"], &renamed["login"]), (&json!("Ada L."), &json!("ada")));
    assert_eq!((&renamed["id"], &renamed["created_at"]), (&before["id"], &before["created_at"]));

    let body = json!({ "login": "Countess", "current_password": ada.password });
    assert_eq!(ada.patch("/users/me", body).await.expect(200)["login"], "countess");

    let mut ada = ada;
    "countess".clone_into(&mut ada.login);
    log_in(&ada).await;

    let old = json!({ "login": "ada", "password": ada.password });
    server_of(&ada).post("/sessions", old).await.refused(401, "invalid_credentials");
    assert_eq!(ada.get("/users?query=countess").await.expect(200)["users"][0]["name"], "Ada L.");
}

async fn another_login_or_password_needs_the_current_one(server: TestServer) {
    let ada = server.user().await;
    for change in [json!({ "password": "a new password" }), json!({ "login": "other" })] {
        ada.patch("/users/me", change.clone()).await.refused_fields(&["current_password"]);
        let mut wrong = change.clone();
        wrong["current_password"] = json!("not it");
        ada.patch("/users/me", wrong).await.refused(403, "wrong_password");
    }

    let all = json!({ "name": "", "login": "-", "password": "short" });
    ada.patch("/users/me", all).await.refused_fields(&[
        "name",
        "login",
        "password",
        "current_password",
    ]);
    log_in(&ada).await;
    assert_eq!(ada.get("/users/me").await.expect(200)["login"], ada.login);
}

async fn another_password_ends_the_other_sessions(server: TestServer) {
    let ada = server.user().await;
    let (phone, tablet) = (log_in(&ada).await, log_in(&ada).await);
    let body = json!({ "password": "a new password", "current_password": ada.password });
    granted(&ada, &phone).patch("/users/me", body).await.expect(200);
    granted(&ada, &phone).get("/users/me").await.expect(200);
    ada.get("/users/me").await.refused(401, "not_authenticated");
    granted(&ada, &tablet).get("/users/me").await.refused(401, "not_authenticated");

    let refresh = json!({ "refresh_token": tablet["refresh_token"] });
    server_of(&ada).post("/sessions/refresh", refresh).await.refused(401, "invalid_refresh_token");

    let old = json!({ "login": ada.login, "password": ada.password });
    server_of(&ada).post("/sessions", old).await.refused(401, "invalid_credentials");

    let mut ada = ada;
    "a new password".clone_into(&mut ada.password);
    log_in(&ada).await;
}

async fn a_change_without_fields_is_refused(server: TestServer) {
    let ada = server.user().await;
    assert_eq!(ada.patch("/users/me", json!({})).await.status, 422);
    assert_eq!(
        ada.patch("/users/me", json!({ "current_password": ada.password })).await.status,
        422
    );
}

async fn removing_the_account_needs_its_password(server: TestServer) {
    let ada = server.user().await;
    ada.delete_with("/users/me", json!({ "password": "not it" }))
        .await
        .refused(403, "wrong_password");
    ada.delete_with("/users/me", json!({})).await.refused_fields(&["password"]);
    assert_eq!(ada.delete("/users/me").await.status, 415, "without a body");
    ada.get("/users/me").await.expect(200);
}

async fn a_removed_account_is_logged_out_everywhere_and_its_login_is_free(server: TestServer) {
    let (ada, bob) = (server.user_named("ada").await, server.user().await);
    let phone = log_in(&ada).await;
    let invite = ada.post("/invites", json!({})).await.expect(201);
    ada.delete_with("/users/me", json!({ "password": ada.password })).await.expect(204);
    for user in [&ada, &granted(&ada, &phone)] {
        user.get("/users/me").await.refused(401, "not_authenticated");
    }

    let stranger = server.stranger();
    let refresh = json!({ "refresh_token": phone["refresh_token"] });
    stranger.post("/sessions/refresh", refresh).await.refused(401, "invalid_refresh_token");

    let credentials = json!({ "login": "ada", "password": ada.password });
    stranger.post("/sessions", credentials).await.refused(401, "invalid_credentials");
    stranger
        .get(&format!("/invites/{}", invite["code"].as_str().unwrap()))
        .await
        .refused(404, "invite_not_found");
    assert_eq!(bob.get("/users?query=ada").await.expect(200)["users"], json!([]));
    assert_eq!(bob.get("/users?query=removed").await.expect(200)["users"], json!([]));

    let shown = bob.get(&format!("/users/{}", ada.id)).await.expect(200);
    assert_eq!((&shown["name"], &shown["login"]), (&json!("removed account"), &Value::Null));
    bob.post("/chats", json!({ "kind": "private", "member_ids": [ada.id] }))
        .await
        .refused_fields(&["member_ids[0]"]);

    let again = stranger.post("/users", newcomer(&server.invite(1).await, "ada")).await.expect(201);
    assert_ne!(again["user"]["id"], json!(ada.id));
}

async fn a_removed_accounts_chats_get_a_new_owner_and_keep_its_messages(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let group = ada.group(&[&bob]).await;
    ada.post(&format!("/chats/{group}/members"), json!({ "user_id": cid.id, "role": "admin" }))
        .await
        .expect(201);

    let (unshared, own) =
        (ada.group(&[]).await, ada.post("/chats", json!({ "kind": "self" })).await.expect(201));
    ada.say(&group, "I was here").await;

    let before = bob.get(&format!("/chats/{group}")).await.expect(200)["rev"].as_i64().unwrap();
    ada.delete_with("/users/me", json!({ "password": ada.password })).await.expect(204);

    let members = bob.get(&format!("/chats/{group}/members")).await.expect(200)["members"].clone();
    let roles: Vec<(Value, Value)> = members
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["user"]["id"].clone(), it["role"].clone()))
        .collect();
    assert_eq!(
        roles,
        [(json!(bob.id), json!("member")), (json!(cid.id), json!("owner"))],
        "the admin inherits"
    );

    let chat = bob.get(&format!("/chats/{group}")).await.expect(200);
    assert_eq!(
        (&chat["member_count"], chat["rev"].as_i64()),
        (&json!(2), Some(before + 2)),
        "two changes"
    );

    let page = bob.get(&format!("/chats/{group}/messages")).await.expect(200);
    assert_eq!(page["messages"][0]["text"], "I was here");
    assert_eq!(page["messages"][0]["sender_id"], json!(ada.id));
    cid.patch(&format!("/chats/{group}"), json!({ "name": "Heirs" })).await.expect(200);
    for gone in [unshared, crate::support::id(&own)] {
        bob.get(&format!("/chats/{gone}")).await.refused(404, "chat_not_found");
    }
}

async fn the_other_user_of_a_private_chat_sees_that_the_account_is_removed(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "bye").await;
    ada.delete_with("/users/me", json!({ "password": ada.password })).await.expect(204);

    let seen = bob.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!(seen["name"], "removed account");
    assert_eq!(seen["peer"], json!({ "id": ada.id, "name": "removed account" }));
    assert_eq!((&seen["last_message"]["text"], &seen["unread_count"]), (&json!("bye"), &json!(1)));
    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([seen]));
    assert_eq!(bob.texts(&chat, "").await, ["bye"]);
    bob.delete(&format!("/chats/{chat}")).await.expect(204);
    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([]));
}
