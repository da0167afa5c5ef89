//! Probes, metrics and documents.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::PASSWORD;
use crate::support::{TestServer, User, everywhere};

everywhere!(
    the_probes_answer_on_both_ports_without_a_token,
    metrics_are_only_on_the_internal_port,
    metrics_count_requests_and_contain_no_secrets,
    the_internal_port_serves_nothing_else,
    the_documents_are_served_and_describe_themselves,
    the_page_of_the_documents_loads,
    every_operation_of_the_document_is_served,
    every_problem_has_the_documented_shape,
);

/// The status, the content type and the body as text.
async fn text(base: &str, path: &str) -> (u16, String, String) {
    let response = reqwest::get(format!("{base}{path}")).await.unwrap();
    let kind = response
        .headers()
        .get("content-type")
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    (response.status().as_u16(), kind, response.text().await.unwrap())
}

async fn the_probes_answer_on_both_ports_without_a_token(server: TestServer) {
    for base in [server.base(), server.internal_base()] {
        for path in ["/livez", "/readyz"] {
            let (status, _, body) = text(&base, path).await;
            assert_eq!((status, body.as_str()), (200, "ok"), "{base}{path}");
        }
    }
    server.stranger().get("/livez").await.expect(200);
    server.stranger().get("/readyz").await.expect(200);
}

async fn metrics_are_only_on_the_internal_port(server: TestServer) {
    assert_eq!(text(&server.internal_base(), "/metrics").await.0, 200);
    let ada = server.user().await;
    ada.get("/metrics").await.refused(404, "route_not_found");
    for path in ["//metrics", "/metrics/", "/./metrics", "/livez/../metrics"] {
        assert_eq!(text(&server.base(), path).await.0, 404, "{path}");
    }
}

async fn metrics_count_requests_and_contain_no_secrets(server: TestServer) {
    let (ada, bob) = (server.user_named("a-login-to-look-for").await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "a text to look for").await;

    let wrong = json!({ "login": ada.login, "password": PASSWORD });
    server.stranger().post("/sessions", wrong).await.expect(401);
    server.stranger().get("/a-path-to-look-for").await.expect(404);

    let (status, kind, metrics) = text(&server.internal_base(), "/metrics").await;
    assert_eq!(status, 200);
    assert!(kind.starts_with("text/plain"), "{kind}");

    for name in [
        "starling_http_requests_total",
        "starling_http_request_seconds_bucket",
        "starling_errors_total",
        "starling_messages_sent_total",
        "starling_append_batch_messages_bucket",
        "starling_store_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} is missing");
    }

    assert!(metrics.contains("route=\"/chats/{chat_id}/messages\""), "the route, not the path");
    assert!(metrics.contains("code=\"invalid_credentials\""));
    for secret in ["to-look-for", "text to look", &chat, &ada.id, &ada.token, &ada.password] {
        assert!(!metrics.contains(secret), "{secret}");
    }
}

async fn the_internal_port_serves_nothing_else(server: TestServer) {
    let ada = server.user().await;
    for path in ["/chats", "/users/me", "/ws", "/docs/", "/openapi.json", "/"] {
        let http = reqwest::Client::new();
        let request = http.get(format!("{}{path}", server.internal_base())).bearer_auth(&ada.token);
        assert_eq!(request.send().await.unwrap().status(), 404, "{path}");
    }
}

async fn the_documents_are_served_and_describe_themselves(server: TestServer) {
    let (status, kind, body) = text(&server.base(), "/openapi.json").await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));

    let document: Value = serde_json::from_str(&body).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(
        document,
        serde_json::from_str::<Value>(&starling::server::openapi()).unwrap(),
        "as the command prints it"
    );

    let (status, kind, body) = text(&server.base(), "/asyncapi.json").await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));

    let document: Value = serde_json::from_str(&body).unwrap();
    assert!(document["asyncapi"].as_str().unwrap().starts_with('3'));
    assert_eq!(document, starling::wire::asyncapi::document());
}

async fn the_page_of_the_documents_loads(server: TestServer) {
    let (status, kind, page) = text(&server.base(), "/docs/").await;
    assert_eq!(status, 200);
    assert!(kind.starts_with("text/html"), "{kind}");

    let sources = page.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let sources: Vec<&str> = sources.filter(|source| !source.starts_with("data:")).collect();
    assert!(!sources.is_empty());
    for source in sources {
        assert!(!source.contains("//"), "nothing is loaded from elsewhere: {source}");
        let path = format!("/docs/{}", source.trim_start_matches("./"));
        assert_eq!(text(&server.base(), &path).await.0, 200, "{path}");
    }

    let start = text(&server.base(), "/docs/swagger-initializer.js").await.2;
    assert!(start.contains("/openapi.json"), "{start}");
    assert_eq!(text(&server.base(), "/").await.2, page, "`/` shows the same page");
    assert_eq!(text(&server.base(), "/docs").await.0, 200);
    for path in ["/docs/../openapi", "/docs/nothing", "/docs/..%2f..%2fetc/passwd"] {
        assert_eq!(text(&server.base(), path).await.0, 404, "{path}");
    }
}

/// Method and path template of every operation of the document.
pub fn operations() -> Vec<(Method, String)> {
    let document: Value = serde_json::from_str(&starling::server::openapi()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"] {
            if item.get(method.to_lowercase()).is_some() {
                operations.push((method.parse().unwrap(), path.clone()));
            }
        }
    }
    operations
}

async fn every_operation_of_the_document_is_served(server: TestServer) {
    let all = operations();
    assert!(all.len() >= 35, "{}", all.len());
    for (method, template) in all {
        let path = template.replace(['{', '}'], "");
        let answer = server.stranger().send(server.stranger().request(method.clone(), &path)).await;
        assert_ne!(answer.status, 405, "{method} {template}");
        assert_ne!(answer.body["code"], "route_not_found", "{method} {template}");
    }
}

async fn every_problem_has_the_documented_shape(server: TestServer) {
    let ada = server.user().await;
    let mut codes = BTreeSet::new();
    for (user, path) in [
        (&ada, "/nothing"),
        (&ada, "/chats?limit=0"),
        (&server.stranger(), "/chats"),
        (&ada, "/users/x"),
    ] {
        let answer = User::get(user, path).await;
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.body["type"], "about:blank");
        assert_eq!(answer.body["status"], answer.status);
        assert!(!answer.body["title"].as_str().unwrap().is_empty());
        assert!(!answer.body["detail"].as_str().unwrap().is_empty());
        codes.insert(answer.body["code"].as_str().unwrap().to_owned());
    }

    assert_eq!(codes.len(), 4);
}
