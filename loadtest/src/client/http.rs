//! HTTP requests to any of several replicas.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Answer;
use crate::wire::Problem;

/// An HTTP client for any number of users. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    bases: Arc<[String]>,
    timeout: Duration,
}

impl Http {
    /// Creates a client for these replicas: at least one, each as `http://host:port`. `timeout`
    /// bounds each request.
    ///
    /// # Errors
    /// If there is no replica, or the client can't be built.
    pub fn new(bases: &[String], timeout: Duration) -> Result<Self, String> {
        if bases.is_empty() {
            return Err("at least one replica address is required".to_owned());
        }

        let client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(3)))
            // A run measures the server, not a proxy in between.
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;

        Ok(Self { client, bases: bases.into(), timeout })
    }

    /// The addresses of the replicas.
    pub fn bases(&self) -> &[String] {
        &self.bases
    }

    /// Maximum time of a request.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The address of the replica with this number, modulo the number of replicas.
    pub fn base(&self, replica: usize) -> &str {
        &self.bases[replica % self.bases.len()]
    }

    /// Sends one request and reads its answer. An empty body is read as `null`.
    pub async fn request<T: DeserializeOwned>(
        &self,
        replica: usize,
        token: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer<T> {
        let mut request = self.client.request(method, format!("{}{path}", self.base(replica)));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }

        if let Some(body) = body {
            request = request.json(body);
        }

        // The client's timeout also covers the body.
        let Ok(response) = request.send().await else { return Answer::Unknown };
        let status = response.status();
        let Ok(bytes) = response.bytes().await else { return Answer::Unknown };

        if status.is_success() {
            let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            // The request succeeded, but without a readable answer its result is unknown.
            return serde_json::from_slice(json).map_or(Answer::Unknown, Answer::Ok);
        }

        if status.is_server_error() {
            return Answer::Unknown;
        }

        let problem: Problem = serde_json::from_slice(&bytes).unwrap_or_default();
        Answer::Refused { status: status.as_u16(), code: problem.code }
    }
}
