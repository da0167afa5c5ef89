//! Sessions, authenticated callers, and the origin of requests.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::address::Network;
use super::{SessionId, Timestamp, UserId};

/// A session as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// A UUID. It stays the same when the tokens rotate.
    pub id: SessionId,
    /// The device's description, as the client gave it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// The client's IP address at the last login or refresh.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// When the session began.
    pub created_at: Timestamp,
    /// When the session was last used, to the minute.
    pub last_seen_at: Timestamp,
    /// Whether this request belongs to the session.
    pub current: bool,
}

/// The user and the session of a valid access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The user's account.
    pub user_id: UserId,
    /// The session that the token belongs to.
    pub session_id: SessionId,
    /// When the token expires.
    pub expires_at: Timestamp,
    /// When the session was last used. May be out of date by the lifetime of the session cache.
    pub last_seen_at: Timestamp,
    /// The number of logins into the session after the first, when the token was made. The next
    /// login closes this caller's connections.
    pub logins: i64,
}

/// The address and the device of a request's client.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The client's address, if it is known.
    pub ip: Option<IpAddr>,
    /// The device's description, as the client gave it.
    pub device: Option<String>,
}

impl Origin {
    /// The key of rate limits per address: an IPv4 address, or the /64 network of an IPv6 address,
    /// which a provider gives to one customer.
    pub fn rate_key(&self) -> String {
        self.ip.map_or_else(|| "unknown".to_owned(), |ip| Network::of(ip).to_string())
    }
}
