//! An HTTP client for one user. It checks every answer against `/openapi.json`.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::contract;

/// An account and its token; without an account, the token is empty.
#[derive(Clone, Debug)]
pub struct User {
    pub id: String,
    pub login: String,
    pub password: String,
    pub token: String,
    pub base: String,
    http: reqwest::Client,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Returns the body. Fails if the status differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Fails unless the server refused the request with this status and code.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
    }

    /// Fails unless the server refused the request with 422 for exactly these fields.
    #[track_caller]
    pub fn refused_fields(&self, fields: &[&str]) {
        self.refused(422, "invalid_fields");

        let named: Vec<&str> = self.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|e| e["field"].as_str())
            .collect();
        assert_eq!(named, fields, "{}", self.body);
    }

    /// A header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl User {
    pub fn new(base: String, id: String, login: String, password: String, token: String) -> Self {
        // A new connection for each request, so that requests spread over the replicas.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        Self { id, login, password, token, base, http }
    }

    /// The same account with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Logs in, into this session if one is given: the account with the new token, and the grant.
    pub async fn log_in(&self, session_id: Option<&Value>) -> (Self, Value) {
        let (login, password) = (&self.login, &self.password);
        let body = json!({ "login": login, "password": password, "session_id": session_id });
        let grant = self.post("/sessions", body).await.expect(201);
        (self.with_token(grant["token"].as_str().unwrap()), grant)
    }

    /// A request that the test completes: headers, malformed bodies.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// Sends a request and checks the answer against the OpenAPI document.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());

        let response = self.http.execute(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();

        assert!(headers.contains_key("x-request-id"), "every answer carries X-Request-Id");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);

        if status != StatusCode::METHOD_NOT_ALLOWED {
            contract::check_answer(
                &method,
                &path,
                status.as_u16(),
                &headers,
                &body,
                bytes.is_empty(),
            );
        }

        Answer { status: status.as_u16(), headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub async fn delete_with(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::DELETE, path).json(&body)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(&body)).await
    }

    /// The private chat with `peer`, created if necessary.
    pub async fn private_chat(&self, peer: &Self) -> String {
        let answer =
            self.post("/chats", json!({ "kind": "private", "member_ids": [peer.id] })).await;
        assert!(answer.status == 200 || answer.status == 201, "{}", answer.body);
        super::id(&answer.body)
    }

    /// A new group with these members.
    pub async fn group(&self, members: &[&Self]) -> String {
        self.shared_chat("group", members).await
    }

    /// A new channel with these members.
    pub async fn channel(&self, members: &[&Self]) -> String {
        self.shared_chat("channel", members).await
    }

    async fn shared_chat(&self, kind: &str, members: &[&Self]) -> String {
        let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        super::id(
            &self
                .post("/chats", json!({ "kind": kind, "name": "Crew", "member_ids": ids }))
                .await
                .expect(201),
        )
    }

    /// Adds a member to a chat.
    pub async fn add_member(&self, chat_id: &str, user: &Self) {
        let path = format!("/chats/{chat_id}/members");
        self.post(&path, json!({ "user_id": user.id })).await.expect(201);
    }

    /// Sends a message over HTTP; returns it.
    pub async fn say(&self, chat_id: &str, text: &str) -> Value {
        self.post(&format!("/chats/{chat_id}/messages"), json!({ "text": text })).await.expect(201)
    }

    /// The texts of a page of history.
    pub async fn texts(&self, chat_id: &str, query: &str) -> Vec<String> {
        let page = self.get(&format!("/chats/{chat_id}/messages{query}")).await.expect(200);
        let text = |message: &Value| message["text"].as_str().unwrap_or("-").to_owned();
        page["messages"].as_array().unwrap().iter().map(text).collect()
    }
}
