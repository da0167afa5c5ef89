//! Sessions: a login with its tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

/// Who is asking: what a valid token stands for.
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
    /// Logins into the session after the first, when the token was made: the next one closes this caller's connections.
    pub logins: i64,
}
