//! Accounts as others see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Timestamp, UserId};

/// The name that stands for somebody whose account is gone.
pub const REMOVED_NAME: &str = "removed account";

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The name to log in with. Absent once the account is removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub login: Option<String>,
    /// The name to show.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An account as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// What all may see of it.
    #[serde(flatten)]
    pub user: User,
    /// Whether users who share no chat with this one are kept from opening a chat with them and
    /// from adding them to one.
    pub refuse_strangers: bool,
}

/// An account in few words, inside other things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserBrief {
    /// Its id.
    pub id: UserId,
    /// The name to log in with. Absent once the account is removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub login: Option<String>,
    /// The name to show.
    pub name: String,
}
