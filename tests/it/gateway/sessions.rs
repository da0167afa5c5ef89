//! The sockets of an ended session close at once; those of other sessions stay open.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Backend, Socket, TestServer, everywhere};

everywhere!(
    logging_out_closes_the_sessions_sockets,
    ending_a_session_closes_its_sockets,
    ending_all_other_sessions_keeps_the_callers,
    a_new_password_closes_the_other_sessions,
    a_refresh_token_used_twice_closes_the_session,
    a_session_reused_by_a_login_closes_its_sockets,
    removing_the_account_closes_all_its_sockets,
);

/// Far below the promised five seconds.
const QUICK: Duration = Duration::from_secs(2);

async fn closes(socket: &mut Socket) {
    let start = Instant::now();
    assert_eq!(socket.close_code().await, 4401);
    assert!(start.elapsed() < QUICK, "{:?}", start.elapsed());
}

async fn logging_out_closes_the_sessions_sockets(server: TestServer) {
    let ada = server.user().await;
    let (other, _) = ada.log_in(None).await;
    let (mut first, mut second) = (Socket::live(&ada).await, Socket::connect(&ada).await);
    let mut kept = Socket::live(&other).await;

    ada.delete("/sessions/current").await.expect(204);
    closes(&mut first).await;
    closes(&mut second).await;
    kept.ping().await;
}

async fn ending_a_session_closes_its_sockets(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (other, grant) = ada.log_in(None).await;
    let (mut own, mut ended, mut bobs) =
        (Socket::live(&ada).await, Socket::live(&other).await, Socket::live(&bob).await);

    let path = format!("/sessions/{}", grant["session"]["id"].as_str().unwrap());
    bob.delete(&path).await.refused(404, "session_not_found");
    ended.ping().await;

    ada.delete(&path).await.expect(204);
    closes(&mut ended).await;
    own.ping().await;
    bobs.ping().await;
}

async fn ending_all_other_sessions_keeps_the_callers(server: TestServer) {
    let ada = server.user().await;
    let (second, third) = (ada.log_in(None).await.0, ada.log_in(None).await.0);
    let (mut a, mut b, mut c) =
        (Socket::live(&ada).await, Socket::live(&second).await, Socket::live(&third).await);
    second.delete("/sessions").await.expect(204);
    closes(&mut a).await;
    closes(&mut c).await;
    b.ping().await;
}

async fn a_new_password_closes_the_other_sessions(server: TestServer) {
    let ada = server.user().await;
    let other = ada.log_in(None).await.0;
    let (mut own, mut others) = (Socket::live(&ada).await, Socket::live(&other).await);
    let change = json!({ "password": "correct horse battery", "current_password": ada.password });
    ada.patch("/users/me", change).await.expect(200);
    closes(&mut others).await;
    own.ping().await;
}

async fn a_refresh_token_used_twice_closes_the_session(server: TestServer) {
    let ada = server.user().await;
    let (other, grant) = ada.log_in(None).await;
    let (mut own, mut stolen) = (Socket::live(&ada).await, Socket::live(&other).await);
    let refresh =
        || ada.post("/sessions/refresh", json!({ "refresh_token": grant["refresh_token"] }));

    let rotated = refresh().await.expect(200);
    stolen.ping().await;
    let mut after_rotation =
        Socket::live(&ada.with_token(rotated["token"].as_str().unwrap())).await;

    server.advance(Duration::from_mins(1));
    refresh().await.refused(401, "invalid_refresh_token");
    closes(&mut stolen).await;
    closes(&mut after_rotation).await;
    own.ping().await;
}

async fn a_session_reused_by_a_login_closes_its_sockets(server: TestServer) {
    let ada = server.user().await;
    let (other, grant) = ada.log_in(None).await;
    let mut socket = Socket::live(&other).await;
    let again = json!({
        "login": ada.login,
        "password": ada.password,
        "session_id": grant["session"]["id"],
    });
    let again = ada.post("/sessions", again).await.expect(201);
    assert_eq!(again["session"]["id"], grant["session"]["id"]);
    closes(&mut socket).await;
    Socket::live(&ada.with_token(again["token"].as_str().unwrap())).await.ping().await;
}

async fn removing_the_account_closes_all_its_sockets(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let other = ada.log_in(None).await.0;
    let (mut first, mut second, mut bobs) =
        (Socket::live(&ada).await, Socket::live(&other).await, Socket::live(&bob).await);

    ada.delete_with("/users/me", json!({ "password": ada.password })).await.expect(204);
    closes(&mut first).await;
    closes(&mut second).await;

    let left = bobs.expect("member_left").await;
    assert_eq!(
        (&left["user_id"], &left["chat_id"], &left["rev"]),
        (&json!(ada.id), &json!(chat), &json!(2))
    );
    let heir = bobs.expect("member_changed").await;
    assert_eq!((&heir["member"]["role"], &heir["rev"]), (&json!("owner"), &json!(3)));
    bobs.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_too_many_closes_the_oldest() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let server =
            TestServer::with(backend, |settings| settings.sessions_per_user_max = Some(2)).await;
        let ada = server.user().await;
        server.advance(Duration::from_secs(1));
        let second = ada.log_in(None).await.0;
        let (mut oldest, mut newer) = (Socket::live(&ada).await, Socket::live(&second).await);

        server.advance(Duration::from_secs(1));
        let third = ada.log_in(None).await.0;

        closes(&mut oldest).await;
        newer.ping().await;
        Socket::live(&third).await.ping().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_while_its_socket_authenticates_leaves_no_socket() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let server = TestServer::start(backend).await;
        let ada = server.user().await;
        for _ in 0..20 {
            let (session, grant) = ada.log_in(None).await;
            let path = format!("/sessions/{}", grant["session"]["id"].as_str().unwrap());

            let connecting = Socket::open(Socket::authenticated(&session));
            let (opened, ended) = tokio::join!(connecting, ada.delete(&path));
            ended.expect(204);
            if let Ok((mut socket, _)) = opened {
                closes(&mut socket).await;
            }
        }
        server.stop().await;
    }
}
