//! The contents of the logs, and the secrets that they must not contain.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::harness::{Home, Process};
use crate::support::{Backend, Socket, User};

#[tokio::test]
async fn json_logs_have_one_object_per_line() {
    let home = Home::new().with("STARLING_LOG", "debug").with("STARLING_LOG_FORMAT", "json");
    let server = home.serve().await;
    server.stranger().get("/users/me\u{1}%0Aforged").await;
    server.stranger().get("/livez?line%0Abreak").await;

    let user = home.users(&server.base, "u", 1).await.remove(0);
    Socket::live(&user).await.close().await;
    server.stop().await;

    let log = home.log();
    assert!(log.lines().count() > 5, "{log}");

    for line in log.lines() {
        let entry: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "target", "fields"] {
            assert!(!entry[key].is_null(), "{key} is missing: {line}");
        }
    }

    assert!(log.contains("serving") && log.contains("SIGTERM"), "start and stop are logged: {log}");
}

#[tokio::test]
async fn the_default_log_has_only_start_and_stop_without_faults() {
    // With few connections, since the system may allow too few open files for the default, which
    // logs a warning.
    let home = Home::new()
        .without("STARLING_LOG")
        .without("STARLING_RATE_LIMITS")
        .with("STARLING_CONNECTIONS_MAX", "100");
    let server = home.serve().await;
    let code = server.first_invite().unwrap();
    let grant = server.register(&code, "ada").await.expect(201);
    let ada = server.stranger().with_token(grant["token"].as_str().unwrap());

    ada.get("/chats").await.expect(200);
    ada.get("/chats/nonsense").await;
    server.stop().await;
    assert_eq!(home.log().lines().count(), 2, "start and stop: {}", home.log());
}

/// Secrets that must not be logged, each with a description.
struct Secrets(Vec<(&'static str, String)>);

impl Secrets {
    fn plant(&mut self, what: &'static str, word: &str) {
        self.0.push((what, word.to_owned()));
    }

    fn none_in(&self, text: &str) {
        let found: Vec<&str> =
            self.0.iter().filter(|(_, word)| text.contains(word)).map(|(what, _)| *what).collect();
        let line = |what: &&str| {
            let (_, word) = self.0.iter().find(|(it, _)| it == what).unwrap();
            text.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned()
        };
        assert!(
            found.is_empty(),
            "in the log: {:#?}",
            found.iter().map(|it| (*it, line(it))).collect::<Vec<_>>()
        );
    }
}

/// Registers, logs in with right and wrong credentials, refreshes, and sends over HTTP and
/// WebSocket.
async fn use_the_server(server: &Process, home: &Home, secrets: &mut Secrets) {
    let invite = home.run(&["invite"]).await.fine();
    secrets.plant("the invite", invite.trim());

    let (login, password, wrong) =
        ("planted-login-x7", "planted password x7", "planted mistake x7");
    secrets.plant("the login", login);
    secrets.plant("the password", password);
    secrets.plant("a wrong password", wrong);

    let body = json!({
        "invite": invite.trim(), "login": login, "password": password, "name": "planted-name-x7"
    });
    let grant = server.stranger().post("/users", body).await.expect(201);
    secrets.plant("the name", "planted-name-x7");
    for key in ["token", "refresh_token"] {
        secrets.plant("a token of registration", grant[key].as_str().unwrap());
    }

    let stranger = server.stranger();
    stranger.get(&format!("/invites/{}", invite.trim())).await.refused(404, "invite_not_found");
    stranger
        .post("/sessions", json!({ "login": login, "password": wrong }))
        .await
        .refused(401, "invalid_credentials");

    let again = stranger
        .post("/sessions", json!({ "login": login, "password": password }))
        .await
        .expect(201);
    let refresh = again["refresh_token"].as_str().unwrap();
    secrets.plant("a token of login", again["token"].as_str().unwrap());

    let fresh =
        stranger.post("/sessions/refresh", json!({ "refresh_token": refresh })).await.expect(200);
    let token = fresh["token"].as_str().unwrap();
    secrets.plant("a refreshed token", token);
    secrets.plant("a spent token", refresh);

    let user = stranger.with_token(token);
    user.with_token("sl_planted-wrong-token-x7")
        .get("/users/me")
        .await
        .refused(401, "not_authenticated");
    secrets.plant("a wrong token", "sl_planted-wrong-token-x7");
    chat(&user, secrets).await;
}

async fn chat(user: &User, secrets: &mut Secrets) {
    let body = json!({ "kind": "group", "name": "planted-group-x7", "member_ids": [] });
    let chat = crate::support::id(&user.post("/chats", body).await.expect(201));
    secrets.plant("a text over HTTP", "planted-http-text-x7");
    secrets.plant("a refused text", "planted-refused-text-x7");
    user.say(&chat, "planted-http-text-x7").await;

    let messages = format!("/chats/{chat}/messages");
    user.post(&messages, json!({ "text": "planted-refused-text-x7", "colour": 1 }))
        .await
        .refused(422, "invalid_fields");

    let broken =
        user.request(reqwest::Method::POST, &messages).header("content-type", "application/json");
    user.send(broken.body("{\"text\": planted-refused-text-x7")).await;
    user.get("/users?query=planted-query-x7").await.expect(200);
    secrets.plant("a search", "planted-query-x7");

    let mut by_header = Socket::live(user).await;
    secrets.plant("a text over the socket", "planted-frame-text-x7");

    let answer = by_header
        .ask(json!({
            "type": "send_message", "chat_id": chat, "text": "planted-frame-text-x7",
            "client_id": "k"
        }))
        .await;
    assert_eq!(answer["type"], "ack");
    by_header
        .ask(json!({ "type": "send_message", "chat_id": chat, "txt": "planted-refused-text-x7" }))
        .await;

    let edit = json!({
        "type": "edit_message", "chat_id": chat, "message_id": 1, "text": "planted-edit-x7"
    });
    by_header.ask(edit).await;
    secrets.plant("an edited text", "planted-edit-x7");

    let mut request = Socket::request(user);
    let protocols = format!("starling.v1, bearer.{}", user.token);
    request
        .headers_mut()
        .insert("sec-websocket-protocol", HeaderValue::from_str(&protocols).unwrap());

    let (by_protocol, _) = Socket::open(request).await.unwrap();
    let (mut by_frame, _) = Socket::open(Socket::request(user)).await.unwrap();
    by_frame.send(json!({ "type": "authenticate", "token": user.token })).await;
    by_frame.expect("ready").await;
    for socket in [by_header, by_protocol, by_frame] {
        socket.close().await;
    }
}

async fn nothing_secret_is_logged(backend: Backend) {
    let home = Home::of(backend).await.with("STARLING_LOG", "trace");
    let server = home.serve().await;
    let mut secrets = Secrets(Vec::new());
    secrets.plant("the first invite", &server.first_invite().unwrap());
    use_the_server(&server, &home, &mut secrets).await;
    server.stop().await;

    let log = home.log();
    assert!(log.contains("TRACE") && log.contains("request"), "this level is logged");
    assert!(secrets.0.len() > 12);
    secrets.none_in(&log);
    home.database.remove().await;
}

#[tokio::test]
async fn no_password_token_text_or_login_is_in_the_log_of_a_server_on_sqlite_even_at_trace() {
    nothing_secret_is_logged(Backend::Sqlite).await;
}

#[tokio::test]
async fn no_password_token_text_or_login_is_in_the_log_of_a_server_on_postgres_even_at_trace() {
    nothing_secret_is_logged(Backend::Postgres).await;
}
