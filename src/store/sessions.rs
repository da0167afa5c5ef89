//! Sessions and their access tokens, which are stored as hashes only.

use std::collections::HashMap;

use sqlx::FromRow;

use super::ended_session::EndedSession;
use super::locks::lock_user_with_password;
use super::refresh_tokens::{BY_LOGIN, SessionTokens, insert_refresh, rotate};
use super::{MapOkDrop, Store, Work, on, on_ids, timed, within};
use crate::model::session::Caller;
use crate::model::token::TokenHash;
use crate::model::{Code, Error, Result, Session, SessionId, Timestamp, UserId};

/// A session to create.
#[derive(Clone)]
pub struct NewSession {
    /// The id that the session gets.
    pub id: SessionId,
    /// The user who logs in.
    pub user_id: UserId,
    /// The first tokens of the session.
    pub tokens: SessionTokens,
    /// The name that the client gave to its device.
    pub device: Option<String>,
    /// The address of the client.
    pub ip: Option<String>,
    /// The time of the login.
    pub now: Timestamp,
}

/// The state of a session before a login reused it.
#[derive(Clone, Copy)]
pub struct Replaced {
    /// The hash of the access token that the session had before.
    pub token: TokenHash,
    /// The number of logins into the session after the first, this one included. Connections of
    /// earlier logins end.
    pub logins: i64,
}

/// The result of [`Store::log_in`].
pub struct LoggedIn {
    /// The session of the login, reused or new.
    pub session_id: SessionId,
    /// The previous token of a reused session; `None` for a new session.
    pub replaced: Option<Replaced>,
    /// The sessions that ended because the user had too many.
    pub ended: Vec<EndedSession>,
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
    /// Logs in. If `reuse` is a live session of this user, it gets the new tokens. Otherwise a new
    /// session is created; if the user has `sessions_max` already, expired and then oldest sessions
    /// end. `verified` is the hash against which the password was verified.
    ///
    /// # Errors
    /// `invalid_credentials` if the account does not exist or its password has changed.
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
                return Ok(LoggedIn {
                    session_id: id,
                    replaced: Some(replaced),
                    ended: Vec::new(),
                });
            }

            let ended = within!(work, |db| sqlx::query_as(
                "DELETE FROM sessions WHERE id IN (
                     SELECT id FROM sessions WHERE user_id = $1
                     ORDER BY expires_at_ms > $3 DESC, created_at_ms DESC, id DESC
                     LIMIT 1000 OFFSET $2
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

    /// The caller whom a token authenticates, if the token is valid at `now`.
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

    /// Stores the time at which a session was last seen.
    pub async fn set_session_last_seen(&self, id: SessionId, now: Timestamp) -> Result<()> {
        timed("set_session_last_seen", || async {
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
                 WHERE user_id = $1 AND expires_at_ms > $2
                 ORDER BY created_at_ms DESC, id DESC LIMIT 1000"
            )
            .bind(caller.user_id)
            .bind(now)
            .fetch_all(db))?;
            Ok(rows.into_iter().map(|row| row.seen_by(caller.session_id)).collect())
        })
        .await
    }

    /// A session as its user sees it.
    pub async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        timed("session", || async {
            let row: Option<SessionRow> = on!(self.session_reader(), |db| {
                sqlx::query_as(
                    "SELECT id, device, ip, created_at_ms, last_seen_at_ms
                     FROM sessions WHERE id = $1",
                )
                .bind(id)
                .fetch_optional(db)
            })?;
            Ok(row.map(|row| row.seen_by(id)))
        })
        .await
    }

    /// Ends a session of a user. `None` if the user has no such session.
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

    /// The live sessions of the user with this login, each with the address of its last login or
    /// refresh. Empty for an unknown login.
    pub async fn live_sessions_of_login(
        &self,
        login: &str,
        now: Timestamp,
    ) -> Result<Vec<(SessionId, Option<String>)>> {
        timed("live_sessions_of_login", || async {
            on!(self.session_reader(), |db| sqlx::query_as(
                "SELECT sessions.id, sessions.ip
                 FROM users JOIN sessions ON sessions.user_id = users.id
                 WHERE users.login = $1 AND sessions.expires_at_ms > $2
                 ORDER BY sessions.created_at_ms DESC LIMIT 1000"
            )
            .bind(login)
            .bind(now)
            .fetch_all(db))
        })
        .await
    }

    /// The sessions of this list that are live at `now`, each with the number of logins into it
    /// after the first.
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

    /// Ends all sessions of a user except `kept`. Returns the sessions that ended.
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
            "INSERT INTO sessions
                 (id, user_id, token_hash, device, ip, created_at_ms, last_seen_at_ms,
                  token_expires_at_ms, expires_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)",
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

/// Locks a live session of this owner and counts a login into it. Returns its present token and the
/// new count.
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
