//! A fault of ours in the middle of something: whoever asked is told no more than that, everybody
//! else goes on, and a server that can't go on ends, to be started anew.

use serde_json::{Value, json};

use super::harness::Home;
use crate::support::Socket;

/// A server that panics whenever it comes by a step.
fn clumsy(step: &str) -> Home {
    Home::new()
        .with("STARLING_FAILPOINTS", &format!("{step}=panic"))
        .with("STARLING_LOG_FORMAT", "json")
}

/// The lines of the log about panics. Each line of it is an object, and none tells what was in the
/// panic's hands.
fn told_of(home: &Home) -> Vec<Value> {
    let log = home.log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    lines.filter(|line| line["fields"]["message"] == "panicked").collect()
}

#[tokio::test]
async fn an_endpoint_that_panics_is_500_without_a_word_of_it_and_the_server_goes_on() {
    let home = clumsy("session_ended");
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
    let told = told_of(&home);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().all(|line| line["fields"]["at"].as_str().unwrap().starts_with("src/")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_connection_that_panics_ends_alone_and_its_user_is_offline() {
    let home = clumsy("snapshot_read");
    let server = home.serve().await;
    let users = home.users(&server.base, "u", 2).await;
    users[0].group(&[&users[1]]).await;
    let mut watcher = Socket::connect(&users[0]).await;
    let mut clumsy = Socket::connect(&users[1]).await;
    watcher.send(json!({ "type": "watch_presence", "user_ids": [users[1].id] })).await;
    assert_eq!(watcher.expect("presence").await["online"], true);
    clumsy.send(json!({ "type": "sync" })).await;
    assert_eq!(clumsy.close_code().await, 0, "it is cut off");
    assert_eq!(watcher.expect("presence").await["online"], false);
    watcher.send(json!({ "type": "ping" })).await;
    watcher.expect("pong").await;
    server.stop().await;
    assert_eq!(told_of(&home).len(), 1);
}

#[tokio::test]
async fn a_server_whose_appender_panics_ends_with_1_and_says_so() {
    let home = clumsy("committing");
    let server = home.serve().await;
    let user = home.users(&server.base, "u", 1).await.remove(0);
    let chat = user.group(&[]).await;
    let sent = user
        .request(reqwest::Method::POST, &format!("/chats/{chat}/messages"))
        .json(&json!({ "text": "x" }));
    // Refused, or cut off by the end of the server.
    assert!(sent.send().await.is_ok_and(|answer| answer.status() == 503 || answer.status() == 500));
    let (code, _, took) = server.end().await;
    assert_eq!(code, Some(1));
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    let log = home.log();
    assert!(log.contains("a vital task panicked") && log.contains("appender"), "{log}");
    assert!(log.contains("starling: a part of the server broke"), "{log}");
}
