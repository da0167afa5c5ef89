//! Sessions: a login with its tokens, its caller, and the origin of its requests.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::address::Network;
use super::{SessionId, Timestamp, UserId};

/// A session as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its id; it stays when the tokens rotate.
    pub id: SessionId,
    /// What the client said of itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// The address of the last login or refresh.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_seen_at: Timestamp,
    /// Whether the caller is asking with it.
    pub current: bool,
}

/// The user and the session that a valid token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The account.
    pub user_id: UserId,
    /// The session.
    pub session_id: SessionId,
    /// When the token stops being valid.
    pub expires_at: Timestamp,
    /// When the session was last seen, as far as known.
    pub last_seen_at: Timestamp,
    /// Logins into the session after the first, when the token was made: the next one closes this
    /// caller's connections.
    pub logins: i64,
}

/// The address and the device that a request comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// The client's name for itself.
    pub device: Option<String>,
}

impl Origin {
    /// The key of limits per address: an IPv4 address, or the /64 network of an IPv6 address, which
    /// is what one customer gets.
    pub fn rate_key(&self) -> String {
        self.ip.map_or_else(|| "unknown".to_owned(), |ip| Network::of(ip).to_string())
    }
}
