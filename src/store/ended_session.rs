//! Sessions that a unit of work ended.

use sqlx::FromRow;

use crate::model::SessionId;
use crate::model::token::TokenHash;

/// A session that ended, with the token that is no longer valid.
#[derive(Clone, Copy, FromRow)]
pub struct EndedSession {
    /// The session that ended.
    pub id: SessionId,
    /// The hash of its last access token.
    #[sqlx(rename = "token_hash", try_from = "Vec<u8>")]
    pub token: TokenHash,
}
