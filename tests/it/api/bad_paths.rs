//! Bad paths, ids, cursors, queries, methods and request ids.

use reqwest::Method;
use serde_json::{Value, json};

use super::{NOBODY, indistinguishable};
use crate::support::{TestServer, everywhere};

everywhere!(
    a_malformed_cursor_is_refused,
    a_malformed_id_is_404,
    the_id_of_a_foreign_chat_is_answered_like_an_unknown_id,
    a_405_lists_the_allowed_methods,
    an_unknown_path_is_a_404_problem,
    a_valid_request_id_is_returned_and_an_invalid_one_is_replaced,
    a_repeated_or_garbled_query_parameter_is_refused,
);

async fn a_malformed_cursor_is_refused(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chats = [ada.group(&[&bob]).await, ada.group(&[]).await];
    let members = format!("/chats/{}/members", chats[0]);
    let lists = ["/chats", "/users", &members];

    let cursor = async |path: &str| {
        ada.get(&format!("{path}?limit=1")).await.expect(200)["next_cursor"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    for path in lists {
        for bad in [
            "x",
            "%00",
            "e30",
            "bnVsbA",
            "W10",
            "////",
            "eyJhIjoxfQ",
            &"A".repeat(600),
            "🦆",
            "eyJsIjoxfQ",
        ] {
            ada.get(&format!("{path}?after={bad}")).await.refused_fields(&["after"]);
        }

        for other in lists.into_iter().filter(|other| *other != path) {
            ada.get(&format!("{path}?after={}", cursor(other).await))
                .await
                .refused_fields(&["after"]);
        }

        ada.get(&format!("{path}?after={}x", cursor(path).await)).await.refused_fields(&["after"]);
        ada.get(&format!("{path}?after={}", cursor(path).await)).await.expect(200);
    }

    // A cursor is a position, not a permission.
    let own = cursor("/chats").await;
    assert_eq!(
        bob.get(&format!("/chats?after={own}")).await.expect(200)["chats"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

async fn a_malformed_id_is_404(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    for id in [
        "x",
        "0",
        "%00",
        "..%2f..",
        "%F0%9F%A6%86",
        "%FF",
        &NOBODY[1..],
        &"a".repeat(5000),
        "'",
        "null",
        NOBODY,
    ] {
        ada.get(&format!("/chats/{id}")).await.refused(404, "chat_not_found");
        ada.get(&format!("/chats/{id}/messages")).await.refused(404, "chat_not_found");
        ada.get(&format!("/chats/{id}/messages/1")).await.refused(404, "chat_not_found");
        ada.get(&format!("/chats/{id}/changes")).await.refused(404, "chat_not_found");
        ada.put(&format!("/chats/{id}/read"), json!({ "message_id": 0 }))
            .await
            .refused(404, "chat_not_found");
        ada.delete(&format!("/chats/{id}")).await.refused(404, "chat_not_found");
        ada.delete(&format!("/chats/{id}/members/me")).await.refused(404, "chat_not_found");
        ada.get(&format!("/users/{id}")).await.refused(404, "user_not_found");
        ada.delete(&format!("/sessions/{id}")).await.refused(404, "session_not_found");
        ada.delete(&format!("/invites/{id}")).await.refused(404, "invite_not_found");
        ada.delete(&format!("/chats/{chat}/members/{id}")).await.refused(404, "member_not_found");
        let role = json!({ "role": "admin" });
        ada.patch(&format!("/chats/{chat}/members/{id}"), role)
            .await
            .refused(404, "member_not_found");
    }
}

async fn the_id_of_a_foreign_chat_is_answered_like_an_unknown_id(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let foreign = ada.group(&[&bob]).await;
    ada.say(&foreign, "secret").await;

    let asks = |chat: &str| {
        let path = |rest: &str| format!("/chats/{chat}{rest}");
        vec![
            (Method::GET, path(""), Value::Null),
            (Method::PATCH, path(""), json!({ "name": "Mine" })),
            (Method::DELETE, path(""), Value::Null),
            (Method::GET, path("/members"), Value::Null),
            (Method::POST, path("/members"), json!({ "user_id": eve.id })),
            (Method::POST, path("/members"), json!({ "user_id": NOBODY })),
            (Method::PATCH, path(&format!("/members/{}", bob.id)), json!({ "role": "owner" })),
            (Method::PATCH, path(&format!("/members/{}", eve.id)), json!({ "role": "owner" })),
            (Method::DELETE, path(&format!("/members/{}", bob.id)), Value::Null),
            (Method::DELETE, path("/members/me"), Value::Null),
            (Method::GET, path("/messages"), Value::Null),
            (
                Method::POST,
                path("/messages"),
                json!({ "text": "x", "reply_to": 1, "client_id": "k" }),
            ),
            (Method::GET, path("/messages/1"), Value::Null),
            (Method::GET, path("/messages/2"), Value::Null),
            (Method::PATCH, path("/messages/1"), json!({ "text": "x" })),
            (Method::DELETE, path("/messages/1"), Value::Null),
            (Method::GET, path("/changes?after_rev=1"), Value::Null),
            (Method::PUT, path("/read"), json!({ "message_id": 1 })),
            (Method::PUT, path("/read"), json!({ "message_id": 9 })),
        ]
    };

    for (of_foreign, of_nothing) in asks(&foreign).into_iter().zip(asks(NOBODY)) {
        let ask = async |(method, path, body): (Method, String, Value)| {
            let request = eve.request(method, &path);
            eve.send(if body.is_null() { request } else { request.json(&body) }).await
        };
        let what = format!("{} {}", of_foreign.0, of_foreign.1);
        let (one, other) = (ask(of_foreign).await, ask(of_nothing).await);
        assert_eq!(one.status, 404, "{what}");
        assert_eq!(one.body["code"], "chat_not_found", "{what}");
        indistinguishable(&one, &other);
    }

    assert_eq!(
        ada.get(&format!("/chats/{foreign}")).await.expect(200)["rev"],
        2,
        "nothing was done"
    );
}

async fn a_405_lists_the_allowed_methods(server: TestServer) {
    let ada = server.user().await;
    for (method, path, allowed) in [
        (Method::PUT, "/chats", vec!["GET", "HEAD", "POST"]),
        (Method::DELETE, "/chats", vec!["GET", "HEAD", "POST"]),
        (Method::POST, "/users/me", vec!["DELETE", "GET", "HEAD", "PATCH"]),
        (Method::GET, "/sessions/refresh", vec!["POST"]),
        (Method::OPTIONS, "/sessions/refresh", vec!["POST"]),
        (Method::from_bytes(b"BREW").unwrap(), "/livez", vec!["GET", "HEAD"]),
        (Method::POST, "/ws", vec!["GET", "HEAD"]),
    ] {
        let answer = ada.send(ada.request(method.clone(), path)).await;
        answer.refused(405, "method_not_allowed");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let mut allow: Vec<&str> =
            answer.header("allow").expect("an Allow header").split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow, allowed, "{method} {path}");
    }
}

async fn an_unknown_path_is_a_404_problem(server: TestServer) {
    for user in [server.user().await, server.stranger()] {
        for path in [
            "/nothing",
            "/chats/",
            "/Chats",
            "/api/chats",
            "/chats/x/y/z",
            "/%00",
            "/.git/config",
            "/..%2f",
        ] {
            for method in [Method::GET, Method::POST] {
                let answer = user.send(user.request(method, path)).await;
                answer.refused(404, "route_not_found");
                assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            }
        }
    }
}

async fn a_valid_request_id_is_returned_and_an_invalid_one_is_replaced(server: TestServer) {
    let ada = server.user().await;
    let id = async |given: &[u8]| {
        let value = reqwest::header::HeaderValue::from_bytes(given).unwrap();
        let answer =
            ada.send(ada.request(Method::GET, "/users/me").header("x-request-id", value)).await;
        assert_eq!(answer.status, 200);
        answer.header("x-request-id").expect("an id of plain characters").to_owned()
    };

    let longest = "x".repeat(128);
    for sane in ["a", "trace-1.2:3_4", "01890000-0000-7000-8000-000000000000", &longest] {
        assert_eq!(id(sane.as_bytes()).await, sane);
    }

    let too_long = "x".repeat(129);
    let bad: [&[u8]; 7] =
        [b"", b"a b", b"a,b", b"a\tb", b"<script>", b"\xe9\xff", too_long.as_bytes()];
    for bad in bad {
        let given = id(bad).await;
        assert_ne!(given.as_bytes(), bad);
        assert_eq!(given.len(), 36, "a UUID: {given}");
    }

    assert_ne!(id(b"").await, id(b"").await);
    let refused =
        ada.send(ada.request(Method::GET, "/nothing").header("x-request-id", "mine")).await;
    assert_eq!(refused.header("x-request-id"), Some("mine"), "errors carry it, too");
}

async fn a_repeated_or_garbled_query_parameter_is_refused(server: TestServer) {
    let ada = server.user().await;
    ada.get("/chats?limit=1&limit=2").await.refused_fields(&["limit"]);
    for ignored in ["colour=red", "", "&&&", "%FF=%FF", "=x"] {
        ada.get(&format!("/chats?{ignored}")).await.expect(200);
    }
    ada.get("/chats?limit=%31").await.expect(200);
    ada.get("/chats?limit=%FF").await.refused_fields(&["limit"]);
}
