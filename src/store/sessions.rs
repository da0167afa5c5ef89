//! Sessions and their tokens, which are stored as hashes only.

use std::collections::HashMap;

use sqlx::FromRow;

use super::locks::lock_user_with_password;
use super::{MapOkDrop, Store, Work, on, on_ids, timed, within};
use crate::metrics;
use crate::model::limits::{REFRESH_GRACE, SPENT_TOKENS_MAX};
use crate::model::session::Caller;
use crate::model::token::TokenHash;
use crate::model::{Code, Error, Result, Session, SessionId, Timestamp, UserId};

/// Fresh tokens of a session, as the store keeps them.
#[derive(Clone, Copy)]
pub struct SessionTokens {
    /// Hash of the access token.
    pub token: TokenHash,
    /// Hash of the refresh token.
    pub refresh: TokenHash,
    /// When the access token ends.
    pub token_expires_at: Timestamp,
    /// When the refresh token, and so the session, ends.
    pub expires_at: Timestamp,
}

/// A session to be made.
#[derive(Clone)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Its owner.
    pub user_id: UserId,
    /// Its first tokens.
    pub tokens: SessionTokens,
    /// What the client says of itself.
    pub device: Option<String>,
    /// Where it comes from.
    pub ip: Option<String>,
    /// Now.
    pub now: Timestamp,
}

/// A session that is over, and the token that must open nothing any more.
#[derive(Clone, Copy, FromRow)]
pub struct EndedSession {
    /// The session.
    pub id: SessionId,
    /// Its last access token.
    #[sqlx(rename = "token_hash", try_from = "Vec<u8>")]
    pub token: TokenHash,
}

/// What a login into a live session replaced.
#[derive(Clone, Copy)]
pub struct Replaced {
    /// The token that the session had before.
    pub token: TokenHash,
    /// Logins into the session after the first, with this one: connections of earlier ones end.
    pub logins: i64,
}

/// What became of a login.
pub struct LoggedIn {
    /// The session.
    pub session_id: SessionId,
    /// What it replaced, if the session is an old one.
    pub replaced: Option<Replaced>,
    /// The sessions that had to end for it.
    pub ended: Vec<EndedSession>,
}

/// What became of a refresh.
pub enum Refreshed {
    /// The session has the new tokens.
    Rotated {
        /// The session, with the token that it had before.
        session: EndedSession,
        /// Its owner.
        user_id: UserId,
    },
    /// The token had been spent before: somebody else has it. The session is over.
    Reused(EndedSession),
    /// Unknown or expired.
    Unknown,
}

#[derive(FromRow)]
struct SessionRow {
    id: SessionId,
    device: Option<String>,
    ip: Option<String>,
    created_at_ms: Timestamp,
    last_seen_at_ms: Timestamp,
}

impl SessionRow {
    fn seen_by(self, current: SessionId) -> Session {
        Session {
            id: self.id,
            device: self.device,
            ip: self.ip,
            created_at: self.created_at_ms,
            last_seen_at: self.last_seen_at_ms,
            current: self.id == current,
        }
    }
}

impl Store {
    /// Logs in: gives the session `reuse` new tokens if it is a live one of this user's, else makes
    /// a new one, ending the oldest over the limit, those past their end first. `verified` is the
    /// hash against which the password was verified.
    ///
    /// # Errors
    /// `invalid_credentials` if the account is gone, or has another password by now.
    pub async fn log_in(
        &self,
        new: &NewSession,
        verified: &str,
        reuse: Option<SessionId>,
        sessions_max: i64,
    ) -> Result<LoggedIn> {
        timed("log_in", || async {
            let mut work = self.begin_session().await?;
            if !lock_user_with_password(&mut work, new.user_id, verified).await? {
                return Err(Code::InvalidCredentials.into());
            }
            if let Some(id) = reuse
                && let Some(replaced) = lock_session(&mut work, id, new.user_id, new.now).await?
            {
                rotate(&mut work, id, &new.tokens, BY_LOGIN, new.now).await?;
                within!(work, |db| sqlx::query(
                    "UPDATE sessions SET device = COALESCE($2, device), ip = $3 WHERE id = $1"
                )
                .bind(id)
                .bind(new.device.as_deref())
                .bind(new.ip.as_deref())
                .execute(db)
                .map_ok_drop())?;
                work.commit().await?;
                return Ok(LoggedIn { session_id: id, replaced: Some(replaced), ended: Vec::new() });
            }
            let ended = within!(work, |db| sqlx::query_as(
                "DELETE FROM sessions WHERE id IN (
                     SELECT id FROM sessions WHERE user_id = $1
                     ORDER BY expires_at_ms > $3 DESC, created_at_ms DESC, id DESC LIMIT 1000 OFFSET $2
                 ) RETURNING id, token_hash"
            )
            .bind(new.user_id)
            .bind((sessions_max - 1).max(0))
            .bind(new.now)
            .fetch_all(db))?;
            insert(&mut work, new).await?;
            work.commit().await?;
            Ok(LoggedIn { session_id: new.id, replaced: None, ended })
        })
        .await
    }

    /// Which session a refresh token belongs to, spent or not.
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

    /// Spends a refresh token for new tokens. One spent before ends its session, except within a
    /// short grace the one that the current token was made from, since the answer may have been
    /// lost.
    pub async fn refresh(
        &self,
        presented: TokenHash,
        tokens: &SessionTokens,
        ip: Option<&str>,
        now: Timestamp,
    ) -> Result<Refreshed> {
        timed("refresh", || async {
            let mut work = self.begin_session().await?;
            // The update locks the session's row, so two refreshes at once take turns.
            let found: Option<(SessionId, UserId, Vec<u8>)> = within!(work, |db| sqlx::query_as(
                "UPDATE sessions SET ip = $2, last_seen_at_ms = $3
                 WHERE id = (SELECT session_id FROM refresh_tokens WHERE hash = $1) AND expires_at_ms > $3
                 RETURNING id, user_id, token_hash"
            )
            .bind(&presented.0[..])
            .bind(ip)
            .bind(now)
            .fetch_optional(db))?;
            let Some((id, user_id, token)) = found else { return Ok(Refreshed::Unknown) };
            let session = EndedSession { id, token: token.try_into().map_err(Error::internal)? };
            let found: Option<(Option<Timestamp>, Option<Vec<u8>>)> = within!(work, |db| sqlx::query_as(
                "SELECT presented.spent_at_ms, current_one.parent FROM refresh_tokens presented
                 LEFT JOIN refresh_tokens current_one
                 ON current_one.session_id = presented.session_id AND current_one.spent_at_ms IS NULL
                 WHERE presented.hash = $1"
            )
            .bind(&presented.0[..])
            .fetch_optional(db))?;
            let Some((spent, parent)) = found else { return Ok(Refreshed::Unknown) };
            // A replica of the version before notes no parent, and lets each of the last seconds
            // come again.
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

    /// Who a token stands for, if it is valid at `now`.
    pub async fn resolve(&self, token: TokenHash, now: Timestamp) -> Result<Option<Caller>> {
        timed("resolve", || async {
            let row: Option<(SessionId, UserId, Timestamp, Timestamp, i64)> =
                on!(self.session_reader(), |db| sqlx::query_as(
                    "SELECT id, user_id, token_expires_at_ms, last_seen_at_ms, logins FROM sessions
                 WHERE token_hash = $1 AND token_expires_at_ms > $2"
                )
                .bind(&token.0[..])
                .bind(now)
                .fetch_optional(db))?;
            Ok(row.map(|(session_id, user_id, expires_at, last_seen_at, logins)| Caller {
                user_id,
                session_id,
                expires_at,
                last_seen_at,
                logins,
            }))
        })
        .await
    }

    /// Notes that a session was seen.
    pub async fn touch_session(&self, id: SessionId, now: Timestamp) -> Result<()> {
        timed("touch_session", || async {
            on!(self.session_writer(), |db| sqlx::query(
                "UPDATE sessions SET last_seen_at_ms = $2 WHERE id = $1"
            )
            .bind(id)
            .bind(now)
            .execute(db)
            .map_ok_drop())
        })
        .await
    }

    /// The live sessions of a user, newest first.
    pub async fn sessions(&self, caller: Caller, now: Timestamp) -> Result<Vec<Session>> {
        timed("sessions", || async {
            let rows: Vec<SessionRow> = on!(self.session_reader(), |db| sqlx::query_as(
                "SELECT id, device, ip, created_at_ms, last_seen_at_ms FROM sessions
                 WHERE user_id = $1 AND expires_at_ms > $2 ORDER BY created_at_ms DESC, id DESC LIMIT 1000"
            )
            .bind(caller.user_id)
            .bind(now)
            .fetch_all(db))?;
            Ok(rows.into_iter().map(|row| row.seen_by(caller.session_id)).collect())
        })
        .await
    }

    /// One session, as its owner sees it.
    pub async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        timed("session", || async {
            let row: Option<SessionRow> = on!(self.session_reader(), |db| {
                sqlx::query_as("SELECT id, device, ip, created_at_ms, last_seen_at_ms FROM sessions WHERE id = $1")
                    .bind(id)
                    .fetch_optional(db)
            })?;
            Ok(row.map(|row| row.seen_by(id)))
        })
        .await
    }

    /// Ends one session of a user, if there is such a one.
    pub async fn end_session(
        &self,
        user_id: UserId,
        id: SessionId,
    ) -> Result<Option<EndedSession>> {
        timed("end_session", || async {
            on!(self.session_writer(), |db| sqlx::query_as(
                "DELETE FROM sessions WHERE id = $1 AND user_id = $2 RETURNING id, token_hash"
            )
            .bind(id)
            .bind(user_id)
            .fetch_optional(db))
        })
        .await
    }

    /// The live sessions of a login, each with the address of its last login or refresh. Nothing
    /// for an unknown login.
    pub async fn live_sessions_of_login(
        &self,
        login: &str,
        now: Timestamp,
    ) -> Result<Vec<(SessionId, Option<String>)>> {
        timed("live_sessions_of_login", || async {
            on!(self.session_reader(), |db| sqlx::query_as(
                "SELECT sessions.id, sessions.ip FROM users JOIN sessions ON sessions.user_id = users.id
                 WHERE users.login = $1 AND sessions.expires_at_ms > $2
                 ORDER BY sessions.created_at_ms DESC LIMIT 1000"
            )
            .bind(login)
            .bind(now)
            .fetch_all(db))
        })
        .await
    }

    /// Which of these sessions are live at `now`, each with the logins into it after the first.
    pub async fn live_sessions(
        &self,
        sessions: &[SessionId],
        now: Timestamp,
    ) -> Result<HashMap<SessionId, i64>> {
        timed("live_sessions", || async {
            let live: Vec<(SessionId, i64)> = on_ids!(
                self.session_reader(),
                query_as,
                "SELECT id, logins FROM sessions WHERE id = ANY($1) AND expires_at_ms > $2",
                sessions,
                |query, db| query.bind(now).fetch_all(db)
            )?;
            Ok(live.into_iter().collect())
        })
        .await
    }

    /// Ends all sessions of a user but one. Returns those that ended.
    pub async fn end_other_sessions(
        &self,
        user_id: UserId,
        kept: SessionId,
    ) -> Result<Vec<EndedSession>> {
        timed("end_other_sessions", || async {
            let mut work = self.begin_session().await?;
            let ended = end_others(&mut work, user_id, kept).await?;
            work.commit().await?;
            Ok(ended)
        })
        .await
    }
}

pub(super) async fn end_others(
    work: &mut Work,
    user_id: UserId,
    kept: SessionId,
) -> Result<Vec<EndedSession>> {
    within!(work, |db| sqlx::query_as(
        "DELETE FROM sessions WHERE user_id = $1 AND id <> $2 RETURNING id, token_hash"
    )
    .bind(user_id)
    .bind(kept)
    .fetch_all(db))
}

pub(super) async fn insert(work: &mut Work, new: &NewSession) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
        "INSERT INTO sessions (id, user_id, token_hash, device, ip, created_at_ms, last_seen_at_ms, token_expires_at_ms, expires_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)"
    )
    .bind(new.id)
    .bind(new.user_id)
    .bind(&new.tokens.token.0[..])
    .bind(new.device.as_deref())
    .bind(new.ip.as_deref())
    .bind(new.now)
    .bind(new.tokens.token_expires_at)
    .bind(new.tokens.expires_at)
    .execute(db)
    .map_ok_drop()
    })?;
    insert_refresh(work, new.id, new.tokens.refresh, BY_LOGIN).await
}

/// The parent of a refresh token that a login made: no token, so that none before it has a grace.
const BY_LOGIN: &[u8] = &[];

async fn insert_refresh(
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

/// Locks a live session of this owner's and counts a login into it. Returns the token that it has
/// so far.
async fn lock_session(
    work: &mut Work,
    id: SessionId,
    owner: UserId,
    now: Timestamp,
) -> Result<Option<Replaced>> {
    let found: Option<(Vec<u8>, i64)> = within!(work, |db| sqlx::query_as(
        "UPDATE sessions SET last_seen_at_ms = $3, logins = logins + 1
         WHERE id = $1 AND user_id = $2 AND expires_at_ms > $3 RETURNING token_hash, logins"
    )
    .bind(id)
    .bind(owner)
    .bind(now)
    .fetch_optional(db))?;
    let Some((token, logins)) = found else { return Ok(None) };
    Ok(Some(Replaced { token: token.try_into().map_err(Error::internal)?, logins }))
}

/// Gives a locked session new tokens, made from `parent`, marks its refresh token as spent, and
/// forgets those that were spent longest ago.
async fn rotate(
    work: &mut Work,
    id: SessionId,
    tokens: &SessionTokens,
    parent: &[u8],
    now: Timestamp,
) -> Result<()> {
    within!(work, |db| {
        sqlx::query(
        "UPDATE sessions SET token_hash = $2, token_expires_at_ms = $3, expires_at_ms = $4, last_seen_at_ms = $5
         WHERE id = $1"
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
    let forgotten: Vec<Vec<u8>> = within!(work, |db| sqlx::query_scalar(
        "DELETE FROM refresh_tokens WHERE session_id = $1 AND hash IN (
             SELECT hash FROM refresh_tokens WHERE session_id = $1 AND spent_at_ms IS NOT NULL
             ORDER BY spent_at_ms DESC, hash LIMIT 1000 OFFSET $2
         ) RETURNING hash"
    )
    .bind(id)
    .bind(SPENT_TOKENS_MAX)
    .fetch_all(db))?;
    metrics::refresh_tokens_forgotten(forgotten.len());
    insert_refresh(work, id, tokens.refresh, parent).await
}
