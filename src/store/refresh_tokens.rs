//! Refresh tokens, which are stored as hashes only: how a session gets new tokens.
//!
//! A session has one refresh token that is not spent. Each token names its parent, the token that
//! was spent for it. The last spent tokens are kept: if one comes again, it may be stolen.

use super::ended_session::EndedSession;
use super::{MapOkDrop, Store, Work, on, timed, within};
use crate::metrics;
use crate::model::limits::{REFRESH_GRACE, SPENT_TOKENS_MAX};
use crate::model::token::TokenHash;
use crate::model::{Error, Result, SessionId, Timestamp, UserId};

/// The parent of a refresh token that a login issued: not a token, so that no earlier token of the
/// session has a grace.
pub(super) const BY_LOGIN: &[u8] = &[];

/// New tokens of a session, as the store keeps them.
#[derive(Clone, Copy)]
pub struct SessionTokens {
    /// The hash of the access token.
    pub token: TokenHash,
    /// The hash of the refresh token.
    pub refresh: TokenHash,
    /// The time at which the access token expires.
    pub token_expires_at: Timestamp,
    /// The time at which the refresh token expires, and with it the session.
    pub expires_at: Timestamp,
}

/// The result of [`Store::refresh`].
pub enum Refreshed {
    /// The session has the new tokens.
    Rotated {
        /// The session, with the access token that it had before.
        session: EndedSession,
        /// The session's user.
        user_id: UserId,
    },
    /// The token was spent before, so it may be stolen. The session has ended.
    Reused(EndedSession),
    /// The token is unknown, or its session has expired.
    Unknown,
}

impl Store {
    /// The session to which a refresh token belongs, spent or not.
    pub async fn session_of_refresh_token(
        &self,
        presented: TokenHash,
    ) -> Result<Option<SessionId>> {
        timed("session_of_refresh_token", || async {
            on!(self.reader(), |db| sqlx::query_scalar(
                "SELECT session_id FROM refresh_tokens WHERE hash = $1"
            )
            .bind(&presented.0[..])
            .fetch_optional(db))
        })
        .await
    }

    /// Spends a refresh token for new tokens. If the token was spent before, it may be stolen, so
    /// its session ends. Exception: within [`REFRESH_GRACE`], the parent of the current token can
    /// be spent again, since the answer may have been lost.
    pub async fn refresh(
        &self,
        presented: TokenHash,
        tokens: &SessionTokens,
        ip: Option<&str>,
        now: Timestamp,
    ) -> Result<Refreshed> {
        timed("refresh", || async {
            let mut work = self.begin_session().await?;
            // The update locks the session's row, so concurrent refreshes run one after another.
            let found: Option<(SessionId, UserId, Vec<u8>)> = within!(work, |db| sqlx::query_as(
                "UPDATE sessions SET ip = $2, last_seen_at_ms = $3
                 WHERE id = (SELECT session_id FROM refresh_tokens WHERE hash = $1)
                   AND expires_at_ms > $3
                 RETURNING id, user_id, token_hash"
            )
            .bind(&presented.0[..])
            .bind(ip)
            .bind(now)
            .fetch_optional(db))?;
            let Some((id, user_id, token)) = found else { return Ok(Refreshed::Unknown) };
            let session = EndedSession { id, token: token.try_into().map_err(Error::internal)? };

            let history: Option<(Option<Timestamp>, Option<Vec<u8>>)> =
                within!(work, |db| sqlx::query_as(
                    "SELECT presented.spent_at_ms, current_one.parent FROM refresh_tokens presented
                     LEFT JOIN refresh_tokens current_one
                     ON current_one.session_id = presented.session_id
                        AND current_one.spent_at_ms IS NULL
                     WHERE presented.hash = $1"
                )
                .bind(&presented.0[..])
                .fetch_optional(db))?;
            let Some((spent, parent)) = history else { return Ok(Refreshed::Unknown) };
            // A replica of the previous version stores no parent. Then each token that was spent
            // within the grace is accepted again.
            let is_parent = parent.is_none_or(|parent| parent == presented.0);
            if spent.is_some_and(|spent| !is_parent || spent < now.minus(REFRESH_GRACE)) {
                within!(work, |db| sqlx::query("DELETE FROM sessions WHERE id = $1")
                    .bind(id)
                    .execute(db)
                    .map_ok_drop())?;
                work.commit().await?;
                return Ok(Refreshed::Reused(session));
            }

            rotate(&mut work, id, tokens, &presented.0, now).await?;
            work.commit().await?;
            Ok(Refreshed::Rotated { session, user_id })
        })
        .await
    }
}

/// Inserts a refresh token that was issued for `parent`.
pub(super) async fn insert_refresh(
    work: &mut Work,
    id: SessionId,
    hash: TokenHash,
    parent: &[u8],
) -> Result<()> {
    within!(work, |db| sqlx::query(
        "INSERT INTO refresh_tokens (hash, session_id, parent) VALUES ($1, $2, $3)"
    )
    .bind(&hash.0[..])
    .bind(id)
    .bind(parent)
    .execute(db)
    .map_ok_drop())
}

/// Gives a locked session new tokens issued for `parent`, marks its present refresh token as spent,
/// and deletes the spent tokens over [`SPENT_TOKENS_MAX`], the oldest first.
pub(super) async fn rotate(
    work: &mut Work,
    id: SessionId,
    tokens: &SessionTokens,
    parent: &[u8],
    now: Timestamp,
) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
            "UPDATE sessions SET token_hash = $2, token_expires_at_ms = $3, expires_at_ms = $4,
                 last_seen_at_ms = $5
             WHERE id = $1",
        )
        .bind(id)
        .bind(&tokens.token.0[..])
        .bind(tokens.token_expires_at)
        .bind(tokens.expires_at)
        .bind(now)
        .execute(db)
        .map_ok_drop()
    })?;

    within!(work, |db| sqlx::query(
        "UPDATE refresh_tokens SET spent_at_ms = $2 WHERE session_id = $1 AND spent_at_ms IS NULL"
    )
    .bind(id)
    .bind(now)
    .execute(db)
    .map_ok_drop())?;

    let deleted: Vec<Vec<u8>> = within!(work, |db| sqlx::query_scalar(
        "DELETE FROM refresh_tokens WHERE session_id = $1 AND hash IN (
             SELECT hash FROM refresh_tokens WHERE session_id = $1 AND spent_at_ms IS NOT NULL
             ORDER BY spent_at_ms DESC, hash LIMIT 1000 OFFSET $2
         ) RETURNING hash"
    )
    .bind(id)
    .bind(SPENT_TOKENS_MAX)
    .fetch_all(db))?;

    metrics::refresh_tokens_forgotten(deleted.len());
    insert_refresh(work, id, tokens.refresh, parent).await
}
