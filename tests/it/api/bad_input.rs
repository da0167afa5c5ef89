//! Malformed bodies, heads and bytes: each is refused with its own status and code, and the server
//! keeps serving.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PASSWORD;
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    an_unknown_field_is_refused_by_name,
    a_wrong_type_is_refused_by_name,
    every_wrong_field_is_named,
    a_body_that_is_not_json_is_malformed,
    json_that_nests_too_deep_is_refused,
    another_media_type_is_refused,
    a_body_too_large_is_refused_and_one_just_fitting_is_not,
    a_body_with_a_large_content_length_or_many_chunks_is_refused,
    a_head_too_large_is_refused,
    bytes_that_are_not_http_are_refused,
    the_server_still_serves_after_a_thousand_concurrent_bad_requests,
);

/// Sends a request with this body, unchanged.
async fn raw(
    user: &User,
    method: Method,
    path: &str,
    kind: &str,
    body: impl Into<reqwest::Body>,
) -> Answer {
    user.send(user.request(method, path).header("content-type", kind).body(body)).await
}

async fn json_raw(user: &User, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    raw(user, Method::POST, path, "application/json", body).await
}

/// Fails unless a user can send a message to another.
async fn still_serves(server: &TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "still here").await;
    assert_eq!(bob.texts(&chat, "").await, ["still here"]);
}

/// Every endpoint that takes a body, with a valid body.
async fn bodies(server: &TestServer) -> (User, Vec<(Method, String, Value)>) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    ada.say(&chat, "one").await;

    let registration = super::newcomer(&server.invite(9).await, "newcomer");
    let endpoints = vec![
        (Method::POST, "/users".to_owned(), registration),
        (
            Method::POST,
            "/sessions".to_owned(),
            json!({ "login": ada.login, "password": ada.password }),
        ),
        (Method::POST, "/sessions/refresh".to_owned(), json!({ "refresh_token": "sl_x" })),
        (Method::PATCH, "/users/me".to_owned(), json!({ "name": "Ada" })),
        (Method::DELETE, "/users/me".to_owned(), json!({ "password": PASSWORD })),
        (Method::POST, "/invites".to_owned(), json!({ "uses": 1 })),
        (Method::POST, "/chats".to_owned(), json!({ "kind": "group", "name": "Crew" })),
        (Method::PATCH, format!("/chats/{chat}"), json!({ "name": "Ship" })),
        (Method::POST, format!("/chats/{chat}/members"), json!({ "user_id": bob.id })),
        (Method::PATCH, format!("/chats/{chat}/members/{}", ada.id), json!({ "role": "owner" })),
        (Method::POST, format!("/chats/{chat}/messages"), json!({ "text": "two" })),
        (Method::PATCH, format!("/chats/{chat}/messages/1"), json!({ "text": "edited" })),
        (Method::PUT, format!("/chats/{chat}/read"), json!({ "message_id": 1 })),
    ];
    (ada, endpoints)
}

async fn an_unknown_field_is_refused_by_name(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    for (method, path, good) in endpoints {
        for field in ["colour", "id", "is_admin", "Text", "constructor"] {
            let mut body = good.clone();
            body[field] = json!("x");
            let answer = ada.send(ada.request(method.clone(), &path).json(&body)).await;
            answer.refused_fields(&[field]);
        }
    }
    assert_eq!(ada.get("/chats").await.expect(200)["chats"][0]["rev"], 2, "nothing was done");
}

async fn a_wrong_type_is_refused_by_name(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    for (method, path, good) in endpoints {
        for field in good.as_object().unwrap().keys() {
            for wrong in [json!({}), json!([]), json!(1.5), json!(true), json!([[1]])] {
                let mut body = good.clone();
                body[field] = wrong;
                let answer = ada.send(ada.request(method.clone(), &path).json(&body)).await;
                answer.refused_fields(&[field]);
            }
        }

        let values: Vec<&Value> = good.as_object().unwrap().values().collect();
        for wrong in [json!([]), json!("x"), json!(1), json!(true), json!([good]), json!(values)] {
            let answer = ada.send(ada.request(method.clone(), &path).json(&wrong)).await;
            answer.refused_fields(&["body"]);
        }
    }

    assert_eq!(ada.get("/chats").await.expect(200)["chats"][0]["rev"], 2, "nothing was done");
}

async fn every_wrong_field_is_named(server: TestServer) {
    let ada = server.user().await;
    let answer =
        ada.post("/users", json!({ "invite": 1, "login": [], "name": {}, "colour": "red" })).await;
    answer.refused(422, "invalid_fields");

    let errors = answer.body["errors"].as_array().unwrap();
    let mut named: Vec<&str> =
        errors.iter().map(|error| error["field"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, ["colour", "invite", "login", "name", "password"]);
    assert!(errors.iter().all(|error| !error["message"].as_str().unwrap().is_empty()));

    let many: serde_json::Map<String, Value> =
        (0..1000).map(|number| (format!("f{number}"), json!(1))).collect();
    let answer = ada.post("/users", Value::Object(many)).await;
    answer.refused(422, "invalid_fields");
    assert!(answer.body["errors"].as_array().unwrap().len() <= 16, "a bounded answer");
}

async fn a_body_that_is_not_json_is_malformed(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    for (method, path, _) in endpoints {
        for bad in [
            "{",
            "nul",
            "{'text': 'x'}",
            "{\"text\": \"x\"} x",
            "{\"text\": NaN}",
            "\u{feff}{}",
            "{,}",
            "\u{0}",
        ] {
            let answer = raw(&ada, method.clone(), &path, "application/json", bad).await;
            answer.refused(400, "malformed_json");
        }

        let no_utf8 = raw(
            &ada,
            method.clone(),
            &path,
            "application/json",
            b"{\"text\": \"\xc3\x28\"}".to_vec(),
        )
        .await;
        no_utf8.refused(400, "malformed_json");

        let empty = raw(&ada, method.clone(), &path, "application/json", "").await;
        if path == "/invites" {
            drop(empty.expect(201));
        } else {
            empty.refused(400, "malformed_json");
        }
    }
    json_raw(&ada, "/chats", r#"{"kind":"self","kind":"group"}"#).await.refused_fields(&["kind"]);
}

async fn json_that_nests_too_deep_is_refused(server: TestServer) {
    let ada = server.user().await;
    for depth in [200, 20_000] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        json_raw(&ada, "/chats", format!("{open}{close}")).await.refused(400, "malformed_json");
        let nested = format!("{{\"kind\":\"self\",\"name\":{open}{close}}}");
        json_raw(&ada, "/chats", nested).await.refused(400, "malformed_json");
    }
    still_serves(&server).await;
}

async fn another_media_type_is_refused(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    for (method, path, good) in endpoints {
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "application/jsonx",
            "x",
            "é",
        ] {
            let answer = raw(&ada, method.clone(), &path, kind, good.to_string()).await;
            answer.refused(415, "unsupported_media_type");
        }

        let bare = ada.send(ada.request(method, &path).body(good.to_string())).await;
        bare.refused(415, "unsupported_media_type");
    }

    for kind in
        ["application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
    {
        raw(&ada, Method::PATCH, "/users/me", kind, r#"{"name":"Ada"}"#).await.expect(200);
    }
}

async fn a_body_too_large_is_refused_and_one_just_fitting_is_not(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    let padded = |bytes: usize| format!("{}{{\"name\":\"Ada\"}}", " ".repeat(bytes - 14));
    for (method, path, _) in endpoints {
        let answer = raw(&ada, method, &path, "application/json", padded(64 * 1024 + 1)).await;
        answer.refused(413, "too_large");
    }

    raw(&ada, Method::PATCH, "/users/me", "application/json", padded(64 * 1024)).await.expect(200);

    // The longest text, in its longest JSON form, fits.
    let chat = ada.group(&[]).await;
    let body = format!("{{\"text\":\"{}\"}}", "\\ud834\\udd1e".repeat(4096));
    assert_eq!(
        json_raw(&ada, &format!("/chats/{chat}/messages"), body).await.expect(201)["text"],
        "𝄞".repeat(4096)
    );
}

/// Sends these bytes, and reads the answer's head or until the server closes the connection.
async fn bytes(server: &TestServer, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // The server may close the connection before it has read all bytes.
    let _ = stream.write_all(sent).await;
    let mut answer = Vec::new();

    let reading = async {
        let mut chunk = [0; 4096];
        while let Ok(read) = stream.read(&mut chunk).await {
            if read == 0 {
                break;
            }
            answer.extend_from_slice(&chunk[..read]);
            if answer.windows(4).any(|window| window == b"\r\n\r\n") {
                break;
            }
        }
    };

    tokio::time::timeout(std::time::Duration::from_secs(10), reading)
        .await
        .expect("the server answers or closes");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn a_body_with_a_large_content_length_or_many_chunks_is_refused(server: TestServer) {
    let ada = server.user().await;
    let head = format!(
        "POST /chats HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\n",
        ada.token
    );
    let claimed = format!("{head}content-length: 99999999999\r\n\r\n{{");
    assert!(bytes(&server, claimed.as_bytes()).await.starts_with("HTTP/1.1 413 "));

    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(17));
    assert!(bytes(&server, chunked.as_bytes()).await.starts_with("HTTP/1.1 413 "));

    let unfinished = format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n");
    assert!(bytes(&server, unfinished.as_bytes()).await.starts_with("HTTP/1.1 400 "));
    still_serves(&server).await;
}

async fn a_head_too_large_is_refused(server: TestServer) {
    let ada = server.user().await;
    let fits = ada.request(Method::GET, "/users/me").header("x-filler", "x".repeat(8000));
    ada.send(fits).await.expect(200);

    let huge =
        format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-filler: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-filler: x\r\n".repeat(2000));
    let long = format!("GET /livez?{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000));

    for head in [huge, many, long] {
        let answer = bytes(&server, head.as_bytes()).await;
        let refused =
            ["HTTP/1.1 431 ", "HTTP/1.1 414 "].iter().any(|status| answer.starts_with(status));
        // The server may also close at once. Its answer is then lost if the client's bytes were
        // still on their way.
        assert!(refused || answer.is_empty(), "{answer}");
    }
    still_serves(&server).await;
}

async fn bytes_that_are_not_http_are_refused(server: TestServer) {
    let heads: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"POST /chats HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        b"\0\0\0\0\r\n\r\n\r\n\r\n",
    ];
    for head in heads {
        let answer = bytes(&server, head).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    still_serves(&server).await;
}

async fn the_server_still_serves_after_a_thousand_concurrent_bad_requests(server: TestServer) {
    let (ada, endpoints) = bodies(&server).await;
    let stranger = server.stranger();
    let asks = (0..1000).map(|number| {
        let (method, path, _) = &endpoints[number % endpoints.len()];
        let (user, bad) = match number % 4 {
            0 => (&ada, "{".to_owned()),
            1 => (&ada, format!("{{\"x{number}\": 1}}")),
            2 => (&stranger, "\u{0}".to_owned()),
            _ => (&ada, "[".repeat(1000)),
        };
        async move {
            loop {
                let answer = raw(user, method.clone(), path, "application/json", bad.clone()).await;
                // On a busy machine, a request may wait too long for its user's permit.
                if answer.status != 503 {
                    return answer;
                }
                assert!(answer.header("retry-after").is_some());
            }
        }
    });

    for answer in futures_util::future::join_all(asks).await {
        assert!([400, 401, 422].contains(&answer.status), "{}", answer.body);
    }
    still_serves(&server).await;
}
