//! A request cannot forge lines of a log.

use serde_json::json;

use crate::process::harness::Home;
use crate::support::Socket;

#[tokio::test]
async fn no_request_forges_a_line_of_the_text_log() {
    let home = Home::new().with("STARLING_LOG", "trace").with("STARLING_LOG_FORMAT", "text");
    let server = home.serve().await;
    let user = home.users(&server.base, "u", 1).await.remove(0);
    let forged = "\n2026-01-01T00:00:00.000000Z ERROR forged: line\r\nforged: line";

    user.post("/sessions", json!({ "login": forged, "password": forged })).await.expect(401);
    user.post(
        "/sessions",
        json!({ "login": user.login, "password": user.password, "device": forged }),
    )
    .await;
    user.post("/chats", json!({ "kind": "group", "name": forged, "member_ids": [] })).await;
    user.post("/chats", json!({ "kind": forged })).await.refused_fields(&["kind"]);
    user.get("/users/me%0Aforged:%20line").await;
    user.get("/chats?after=%0Aforged:%20line").await.refused_fields(&["after"]);

    let mut socket = Socket::live(&user).await;
    socket.send(json!({ "type": forged, "id": forged })).await;
    socket.expect("error").await;
    socket
        .send(json!({ "type": "send_message", "chat_id": forged, "text": forged, "id": 1 }))
        .await;
    socket.expect("error").await;
    socket.close().await;
    server.stop().await;

    let log = home.log();
    assert!(log.lines().count() > 5, "{log}");
    for line in log.lines() {
        assert!(
            !line.starts_with("2026-01-01T") && !line.trim_start().starts_with("forged"),
            "{line}"
        );
    }
}
