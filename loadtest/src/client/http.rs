//! HTTP requests of one user to any of several replicas.

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
    /// A client for these replicas (`http://host:port` each, at least one), each request bounded by
    /// `timeout`.
    ///
    /// # Errors
    /// If there is no replica, or the client can't be built.
    pub fn new(bases: &[String], timeout: Duration) -> Result<Self, String> {
        if bases.is_empty() {
            return Err("at least one address is needed".to_owned());
        }
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(3)))
            // A chaos run measures the server, not a proxy between.
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { client, bases: bases.into(), timeout })
    }

    /// The addresses of the replicas.
    pub fn bases(&self) -> &[String] {
        &self.bases
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The replica with this number, counted round and round.
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
        // The timeout of the client runs on until the body is read.
        let Ok(response) = request.send().await else { return Answer::Unknown };
        let status = response.status();
        let Ok(bytes) = response.bytes().await else { return Answer::Unknown };
        if status.is_success() {
            let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            // Done, but what was done can't be told.
            return serde_json::from_slice(json).map_or(Answer::Unknown, Answer::Ok);
        }
        if status.is_server_error() {
            return Answer::Unknown;
        }
        let problem: Problem = serde_json::from_slice(&bytes).unwrap_or_default();
        Answer::Refused { status: status.as_u16(), code: problem.code }
    }
}
