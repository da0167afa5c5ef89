//! Panics in the server. The client gets a 500 without details, and other clients are unaffected.
//! If a vital task panics, the process ends, so that it is restarted.

use serde_json::{Value, json};

use super::harness::Home;
use crate::support::Socket;

/// A server that panics whenever it reaches this failpoint.
fn panicking(step: &str) -> Home {
    Home::new()
        .with("STARLING_FAILPOINTS", &format!("{step}=panic"))
        .with("STARLING_LOG_FORMAT", "json")
}

/// The log lines about panics. Fails unless each line of the log is a JSON object.
fn logged_panics(home: &Home) -> Vec<Value> {
    let log = home.log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    lines.filter(|line| line["fields"]["message"] == "panicked").collect()
}

#[tokio::test]
async fn a_panicking_endpoint_is_500_without_details_and_the_server_continues() {
    let home = panicking("session_ended");
    let server = home.serve().await;
    let users = home.users(&server.base, "u", 2).await;
    for user in &users {
        let answer = user.delete("/sessions/current").await;
        answer.refused(500, "internal");
        assert!(answer.header("x-request-id").is_some());
        let body = answer.body.to_string();
        assert!(["panic", "failpoint", "src/"].iter().all(|word| !body.contains(word)), "{body}");
    }

    server.stranger().get("/livez").await.expect(200);
    let credentials = json!({ "login": users[0].login, "password": users[0].password });
    server.stranger().post("/sessions", credentials).await.expect(201);
    server.stop().await;

    let panics = logged_panics(&home);
    assert_eq!(panics.len(), 2, "{panics:?}");
    assert!(
        panics.iter().all(|line| line["fields"]["at"].as_str().unwrap().starts_with("src/")),
        "{panics:?}"
    );
}

#[tokio::test]
async fn a_panicking_connection_ends_no_other_and_its_user_goes_offline() {
    let home = panicking("snapshot_read");
    let server = home.serve().await;
    let users = home.users(&server.base, "u", 2).await;
    users[0].group(&[&users[1]]).await;

    let mut watcher = Socket::connect(&users[0]).await;
    let mut syncing = Socket::connect(&users[1]).await;
    watcher.send(json!({ "type": "watch_presence", "user_ids": [users[1].id] })).await;
    assert_eq!(watcher.expect("presence").await["online"], true);
    syncing.send(json!({ "type": "sync" })).await;
    assert_eq!(syncing.close_code().await, 0, "the connection ends without a close code");
    assert_eq!(watcher.expect("presence").await["online"], false);
    watcher.send(json!({ "type": "ping" })).await;
    watcher.expect("pong").await;
    server.stop().await;
    assert_eq!(logged_panics(&home).len(), 1);
}

#[tokio::test]
async fn a_server_whose_appender_panics_exits_with_1_and_logs_it() {
    let home = panicking("committing");
    let server = home.serve().await;
    let user = home.users(&server.base, "u", 1).await.remove(0);
    let chat = user.group(&[]).await;
    let sent = user
        .request(reqwest::Method::POST, &format!("/chats/{chat}/messages"))
        .json(&json!({ "text": "x" }));

    // The send is refused.
    assert!(sent.send().await.is_ok_and(|answer| answer.status() == 503 || answer.status() == 500));

    let (code, _, took) = server.end().await;
    assert_eq!(code, Some(1));
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");

    let log = home.log();
    assert!(log.contains("a vital task panicked") && log.contains("appender"), "{log}");
    assert!(log.contains("starling: a part of the server broke"), "{log}");
}
