//! Which clients may connect, and the ways to authenticate.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};

use crate::support::{Backend, Socket, TestServer, User, everywhere};

everywhere!(
    a_token_in_the_header_authenticates,
    a_token_in_the_subprotocol_authenticates_and_is_not_echoed,
    a_token_in_the_first_frame_authenticates,
    without_a_token_the_subprotocol_is_echoed,
    a_bad_token_refuses_the_upgrade,
    a_bad_token_in_a_frame_closes_with_4401,
    a_client_that_sends_nothing_is_closed_after_five_seconds,
    pings_do_not_replace_authentication,
    another_first_frame_closes,
    a_token_in_the_url_is_not_accepted,
    an_origin_must_be_the_servers_own,
    a_second_authenticate_is_refused_and_the_connection_stays,
    a_plain_request_is_answered_400,
    an_ended_session_cannot_connect,
    the_ready_frame_names_the_user_the_session_and_the_heartbeat,
);

fn with_header(user: &User, name: &'static str, value: &str) -> Request<()> {
    let mut request = Socket::request(user);
    request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    request
}

async fn a_token_in_the_header_authenticates(server: TestServer) {
    let ada = server.user().await;
    for scheme in ["Bearer", "bearer"] {
        let request = with_header(&ada, "authorization", &format!("{scheme} {}", ada.token));
        let (mut socket, response) = Socket::open(request).await.unwrap();
        assert!(response.headers().get("sec-websocket-protocol").is_none(), "nothing was offered");
        assert_eq!(socket.expect("ready").await["user_id"], ada.id);
    }
}

async fn a_token_in_the_subprotocol_authenticates_and_is_not_echoed(server: TestServer) {
    let ada = server.user().await;
    let offers =
        [format!("starling.v1, bearer.{}", ada.token), format!("bearer.{},starling.v1", ada.token)];
    for offer in offers {
        let request = with_header(&ada, "sec-websocket-protocol", &offer);
        let (mut socket, response) = Socket::open(request).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "starling.v1");
        assert_eq!(socket.expect("ready").await["user_id"], ada.id);
    }
}

async fn a_token_in_the_first_frame_authenticates(server: TestServer) {
    let ada = server.user().await;
    for id in [json!("first"), json!(7)] {
        let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
        socket.send(json!({ "type": "authenticate", "token": ada.token, "id": id })).await;
        let ready = socket.expect("ready").await;
        assert_eq!((&ready["user_id"], &ready["id"]), (&json!(ada.id), &id));
    }
}

async fn without_a_token_the_subprotocol_is_echoed(server: TestServer) {
    let ada = server.user().await;
    let request = with_header(&ada, "sec-websocket-protocol", "starling.v1");
    let (mut socket, response) = Socket::open(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "starling.v1");
    socket.send(json!({ "type": "authenticate", "token": ada.token })).await;
    socket.expect("ready").await;
}

async fn a_bad_token_refuses_the_upgrade(server: TestServer) {
    let ada = server.user().await;
    let unknown = ada.with_token("sl_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");

    for user in [&unknown, &ada.with_token("nonsense")] {
        let header = Socket::authenticated(user);
        assert_eq!(Socket::refused(header).await, 401);
        let offer = with_header(
            user,
            "sec-websocket-protocol",
            &format!("starling.v1, bearer.{}", user.token),
        );
        assert_eq!(Socket::refused(offer).await, 401);
    }

    assert_eq!(Socket::refused(with_header(&ada, "authorization", "Basic YTpi")).await, 401);
    assert_eq!(Socket::refused(with_header(&ada, "authorization", "Bearer")).await, 401);
}

async fn a_bad_token_in_a_frame_closes_with_4401(server: TestServer) {
    let ada = server.user().await;
    for token in ["sl_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "", "nonsense", &ada.login] {
        let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
        socket.send(json!({ "type": "authenticate", "token": token })).await;
        assert_eq!(socket.close_code().await, 4401, "{token:?}");
    }
}

async fn a_client_that_sends_nothing_is_closed_after_five_seconds(server: TestServer) {
    let ada = server.user().await;
    let start = Instant::now();
    let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
    assert_eq!(socket.close_code().await, 4408);
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

async fn pings_do_not_replace_authentication(server: TestServer) {
    let ada = server.user().await;
    let start = Instant::now();
    let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
    for _ in 0..4 {
        socket.send_raw(Message::Ping(vec![1].into())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(socket.close_code().await, 4408);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

async fn another_first_frame_closes(server: TestServer) {
    let ada = server.user().await;
    let firsts = [
        (Message::text(json!({ "type": "ping" }).to_string()), 4401),
        (Message::text(json!({ "type": "sync" }).to_string()), 4401),
        (Message::text(json!({ "type": "authenticate" }).to_string()), 4401),
        (
            Message::text(
                json!({ "type": "authenticate", "token": ada.token, "x": 1 }).to_string(),
            ),
            4401,
        ),
        (Message::text("hello"), 4401),
        (Message::binary(vec![0]), 4400),
    ];

    for (first, code) in firsts {
        let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
        socket.send_raw(first.clone()).await;
        assert_eq!(socket.close_code().await, code, "{first:?}");
    }
}

async fn a_token_in_the_url_is_not_accepted(server: TestServer) {
    let ada = server.user().await;
    for name in ["token", "access_token", "bearer", "authorization"] {
        let mut request = Socket::request(&ada);
        *request.uri_mut() =
            format!("ws://{}/ws?{name}={}", server.address(), ada.token).parse().unwrap();
        let (mut socket, _) = Socket::open(request).await.unwrap();
        socket.expect_silence().await;
        socket.send(json!({ "type": "ping" })).await;
        assert_eq!(socket.close_code().await, 4401, "{name}");
    }
}

async fn an_origin_must_be_the_servers_own(server: TestServer) {
    let ada = server.user().await;
    let own = server.address().to_string();

    for origin in [format!("http://{own}"), format!("https://{own}")] {
        let (_socket, _) = Socket::open(with_header(&ada, "origin", &origin)).await.unwrap();
    }

    let foreign = [
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        &format!("http://{own}.evil.example"),
        &own,
        "",
    ];

    for origin in foreign {
        assert_eq!(Socket::refused(with_header(&ada, "origin", origin)).await, 403, "{origin:?}");
        let mut authenticated = Socket::authenticated(&ada);
        authenticated.headers_mut().insert("origin", HeaderValue::from_str(origin).unwrap());
        assert_eq!(Socket::refused(authenticated).await, 403, "{origin:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_origin_may_connect_and_no_other() {
    let list = "https://app.example.org,https://two.example";
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.allowed_origins = Some(list.into()))
            .await;
    let ada = server.user().await;
    for origin in ["https://app.example.org", "https://two.example"] {
        let (_socket, _) = Socket::open(with_header(&ada, "origin", origin)).await.unwrap();
    }

    for origin in
        ["http://app.example.org", "https://app.example.org.evil.example", "https://three.example"]
    {
        assert_eq!(Socket::refused(with_header(&ada, "origin", origin)).await, 403, "{origin}");
    }
    server.stop().await;

    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.allowed_origins = Some("*".into()))
            .await;
    let ada = server.user().await;
    let (_socket, _) =
        Socket::open(with_header(&ada, "origin", "https://anywhere.example")).await.unwrap();
    server.stop().await;
}

async fn a_second_authenticate_is_refused_and_the_connection_stays(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let mut socket = Socket::connect(&ada).await;
    let answer = socket.ask(json!({ "type": "authenticate", "token": bob.token })).await;
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("error"), &json!("already_authenticated"))
    );
    socket.ping().await;
}

async fn a_plain_request_is_answered_400(server: TestServer) {
    let ada = server.user().await;
    ada.get("/ws").await.refused(400, "malformed_request");
    server.stranger().get("/ws").await.refused(400, "malformed_request");
}

async fn an_ended_session_cannot_connect(server: TestServer) {
    let ada = server.user().await;
    Socket::connect(&ada).await.close().await;
    ada.delete("/sessions/current").await.expect(204);
    assert_eq!(Socket::refused(Socket::authenticated(&ada)).await, 401);
    let (mut socket, _) = Socket::open(Socket::request(&ada)).await.unwrap();
    socket.send(json!({ "type": "authenticate", "token": ada.token })).await;
    assert_eq!(socket.close_code().await, 4401);
}

async fn the_ready_frame_names_the_user_the_session_and_the_heartbeat(server: TestServer) {
    let ada = server.user().await;
    let session = ada.get("/sessions/current").await.expect(200);
    let (mut socket, _) = Socket::open(Socket::authenticated(&ada)).await.unwrap();
    let ready = socket.expect("ready").await;

    assert_eq!(ready["session_id"], session["session"]["id"]);
    assert_eq!(ready["user_id"], ada.id);
    assert_eq!(ready["heartbeat_interval_ms"], 30_000);
    let time = ready["server_time"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    assert!(ready.get("id").is_none(), "no frame was answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_user_are_bounded_and_a_closed_one_makes_room() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let server =
            TestServer::with(backend, |settings| settings.connections_per_user_max = Some(3)).await;
        let (ada, bob) = (server.user().await, server.user().await);
        let mut sockets = Vec::new();
        for _ in 0..3 {
            sockets.push(Socket::connect(&ada).await);
        }

        let (mut over, _) = Socket::open(Socket::authenticated(&ada)).await.unwrap();
        assert_eq!(over.close_code().await, 4409);
        Socket::connect(&bob).await;

        sockets.pop().unwrap().close().await;
        crate::support::eventually("room for another connection", async || {
            let (mut another, _) = Socket::open(Socket::authenticated(&ada)).await.unwrap();
            matches!(another.next_raw().await, Some(Message::Text(_)))
        })
        .await;

        for socket in &mut sockets {
            socket.ping().await;
        }

        server.stop().await;
    }
}
