//! Accounts, as their owners and as other users see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Timestamp, UserId};

/// The name that is shown for a removed account.
pub const REMOVED_NAME: &str = "removed account";

/// An account as all users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// A UUID.
    pub id: UserId,
    /// The unique name to log in with. Absent once the account is removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub login: Option<String>,
    /// The name that clients show, 1 to 100 characters.
    pub name: String,
    /// When the account was created.
    pub created_at: Timestamp,
}

/// An account as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// The fields that all users see.
    #[serde(flatten)]
    pub user: User,
    /// Whether only users who share a chat with this user can open a private chat with this user,
    /// or add this user to a group or channel.
    pub refuse_strangers: bool,
}

/// A summary of an account, as a part of other objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserBrief {
    /// A UUID.
    pub id: UserId,
    /// The unique name to log in with. Absent once the account is removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub login: Option<String>,
    /// The name that clients show, 1 to 100 characters.
    pub name: String,
}
