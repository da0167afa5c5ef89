//! Sessions and their tokens, which are stored as hashes only.

use std::collections::HashSet;

use sqlx::FromRow;

use super::users::lock_users;
use super::{Db, MapOkDrop, Store, Work, failure, lent, on, timed, within};
use crate::model::limits::REFRESH_GRACE;
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

/// What became of a login.
pub struct LoggedIn {
    /// The session.
    pub session_id: SessionId,
    /// The token that it had before, if it is an old one.
    pub replaced: Option<TokenHash>,
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
    /// Logs in: gives the session `reuse` new tokens if it is a live one of this user's, else makes a new one, ending the
    /// oldest over the limit, those past their end first.
    pub async fn log_in(&self, new: &NewSession, reuse: Option<SessionId>, sessions_max: i64) -> Result<LoggedIn> {
        timed("log_in", || async {
            let mut work = self.begin().await?;
            if lock_users(&mut work, &[new.user_id]).await?.is_empty() {
                return Err(Code::InvalidCredentials.into());
            }
            if let Some(id) = reuse
                && let Some(old) = lock_session(&mut work, id, new.user_id, new.now).await?
            {
                rotate(&mut work, id, &new.tokens, new.now).await?;
                within!(work, |db| sqlx::query(
                    "UPDATE sessions SET device = COALESCE($2, device), ip = $3 WHERE id = $1"
                )
                .bind(id)
                .bind(new.device.as_deref())
                .bind(new.ip.as_deref())
                .execute(db)
                .map_ok_drop())?;
                work.commit().await?;
                return Ok(LoggedIn { session_id: id, replaced: Some(old.token), ended: Vec::new() });
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

    /// Spends a refresh token for new tokens. One spent before ends its session, except within a short grace, since the
    /// answer may have been lost.
    pub async fn refresh(
        &self,
        presented: TokenHash,
        tokens: &SessionTokens,
        ip: Option<&str>,
        now: Timestamp,
    ) -> Result<Refreshed> {
        timed("refresh", || async {
            let mut work = self.begin().await?;
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
            let spent: Option<Timestamp> =
                within!(work, |db| sqlx::query_scalar("SELECT spent_at_ms FROM refresh_tokens WHERE hash = $1")
                    .bind(&presented.0[..])
                    .fetch_one(db))?;
            if spent.is_some_and(|spent| spent < now.minus(REFRESH_GRACE)) {
                within!(work, |db| sqlx::query("DELETE FROM sessions WHERE id = $1")
                    .bind(id)
                    .execute(db)
                    .map_ok_drop())?;
                work.commit().await?;
                return Ok(Refreshed::Reused(session));
            }
            rotate(&mut work, id, tokens, now).await?;
            work.commit().await?;
            Ok(Refreshed::Rotated { session, user_id })
        })
        .await
    }

    /// Who a token stands for, if it is valid at `now`.
    pub async fn resolve(&self, token: TokenHash, now: Timestamp) -> Result<Option<Caller>> {
        timed("resolve", || async {
            let row: Option<(SessionId, UserId, Timestamp, Timestamp)> = on!(self.reader(), |db| sqlx::query_as(
                "SELECT id, user_id, token_expires_at_ms, last_seen_at_ms FROM sessions
                 WHERE token_hash = $1 AND token_expires_at_ms > $2"
            )
            .bind(&token.0[..])
            .bind(now)
            .fetch_optional(db))?;
            Ok(row.map(|(session_id, user_id, expires_at, last_seen_at)| Caller {
                user_id,
                session_id,
                expires_at,
                last_seen_at,
            }))
        })
        .await
    }

    /// Notes that a session was seen.
    pub async fn touch_session(&self, id: SessionId, now: Timestamp) -> Result<()> {
        timed("touch_session", || async {
            on!(self.writer(), |db| sqlx::query("UPDATE sessions SET last_seen_at_ms = $2 WHERE id = $1")
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
            let rows: Vec<SessionRow> = on!(self.reader(), |db| sqlx::query_as(
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
            let row: Option<SessionRow> = on!(self.reader(), |db| {
                sqlx::query_as("SELECT id, device, ip, created_at_ms, last_seen_at_ms FROM sessions WHERE id = $1")
                    .bind(id)
                    .fetch_optional(db)
            })?;
            Ok(row.map(|row| row.seen_by(id)))
        })
        .await
    }

    /// Ends one session of a user, if there is such a one.
    pub async fn end_session(&self, user_id: UserId, id: SessionId) -> Result<Option<EndedSession>> {
        timed("end_session", || async {
            on!(self.writer(), |db| sqlx::query_as(
                "DELETE FROM sessions WHERE id = $1 AND user_id = $2 RETURNING id, token_hash"
            )
            .bind(id)
            .bind(user_id)
            .fetch_optional(db))
        })
        .await
    }

    /// Which of these sessions are over at `now`.
    pub async fn ended_sessions(&self, sessions: &[SessionId], now: Timestamp) -> Result<Vec<SessionId>> {
        timed("ended_sessions", || async {
            let mut live: HashSet<SessionId> = HashSet::with_capacity(sessions.len());
            match self.reader() {
                Db::Postgres(pool) => {
                    let ids: Vec<uuid::Uuid> = sessions.iter().map(|id| id.0).collect();
                    let found: Vec<SessionId> = lent!(pool, |db| sqlx::query_scalar(
                        "SELECT id FROM sessions WHERE id = ANY($1) AND expires_at_ms > $2"
                    )
                    .bind(ids)
                    .bind(now)
                    .fetch_all(db))?;
                    live.extend(found);
                }
                Db::Sqlite(db) => {
                    let ids: Vec<String> = sessions.iter().map(|id| id.0.simple().to_string()).collect();
                    let found: Vec<SessionId> = sqlx::query_scalar(
                        "SELECT id FROM sessions WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND expires_at_ms > $2",
                    )
                    .bind(serde_json::Value::from(ids).to_string())
                    .bind(now)
                    .fetch_all(db)
                    .await
                    .map_err(failure)?;
                    live.extend(found);
                }
            }
            Ok(sessions.iter().copied().filter(|id| !live.contains(id)).collect())
        })
        .await
    }

    /// Ends all sessions of a user but one. Returns those that ended.
    pub async fn end_other_sessions(&self, user_id: UserId, kept: SessionId) -> Result<Vec<EndedSession>> {
        timed("end_other_sessions", || async {
            let mut work = self.begin().await?;
            let ended = end_others(&mut work, user_id, kept).await?;
            work.commit().await?;
            Ok(ended)
        })
        .await
    }
}

pub(super) async fn end_others(work: &mut Work, user_id: UserId, kept: SessionId) -> Result<Vec<EndedSession>> {
    within!(work, |db| sqlx::query_as("DELETE FROM sessions WHERE user_id = $1 AND id <> $2 RETURNING id, token_hash")
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
    insert_refresh(work, new.id, new.tokens.refresh).await
}

async fn insert_refresh(work: &mut Work, id: SessionId, hash: TokenHash) -> Result<()> {
    within!(work, |db| sqlx::query("INSERT INTO refresh_tokens (hash, session_id) VALUES ($1, $2)")
        .bind(&hash.0[..])
        .bind(id)
        .execute(db)
        .map_ok_drop())
}

/// Locks a live session of this owner's. Returns it with the token that it has now.
async fn lock_session(work: &mut Work, id: SessionId, owner: UserId, now: Timestamp) -> Result<Option<EndedSession>> {
    within!(work, |db| sqlx::query_as(
        "UPDATE sessions SET last_seen_at_ms = $3 WHERE id = $1 AND user_id = $2 AND expires_at_ms > $3
         RETURNING id, token_hash"
    )
    .bind(id)
    .bind(owner)
    .bind(now)
    .fetch_optional(db))
}

/// Gives a locked session new tokens and marks its refresh token as spent.
async fn rotate(work: &mut Work, id: SessionId, tokens: &SessionTokens, now: Timestamp) -> Result<()> {
    within!(work, |db| sqlx::query(
        "UPDATE sessions SET token_hash = $2, token_expires_at_ms = $3, expires_at_ms = $4, last_seen_at_ms = $5
         WHERE id = $1"
    )
    .bind(id)
    .bind(&tokens.token.0[..])
    .bind(tokens.token_expires_at)
    .bind(tokens.expires_at)
    .bind(now)
    .execute(db)
    .map_ok_drop())?;
    within!(work, |db| sqlx::query(
        "UPDATE refresh_tokens SET spent_at_ms = $2 WHERE session_id = $1 AND spent_at_ms IS NULL"
    )
    .bind(id)
    .bind(now)
    .execute(db)
    .map_ok_drop())?;
    insert_refresh(work, id, tokens.refresh).await
}
