//! Sessions: logging in, resolving a token, refreshing, ending.

use std::net::IpAddr;

use super::guesses::login_limits;
use super::hasher::Verdict;
use super::{Service, secrets};
use crate::model::address::Network;
use crate::model::faults::{self, Point};
use crate::model::limits::{
    LAST_SEEN_EVERY, LOGINS_PER_ACCOUNT, REFRESHES_PER_ADDRESS, REFRESHES_PER_SESSION, VERIFY_TRIES_MAX,
};
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::token::{Token, TokenHash};
use crate::model::{Code, Error, Event, Result, Session, SessionId, Timestamp, User, UserId};
use crate::store::{EndedSession, LoggedIn, NewSession, Refreshed, Replaced, SessionTokens};

/// What a client tells to log in.
pub struct Login {
    /// The account's login.
    pub login: String,
    /// Its password.
    pub password: String,
    /// An own live session to give new tokens to, instead of making one.
    pub session_id: Option<SessionId>,
}

/// Where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// What the client says of itself.
    pub device: Option<String>,
}

impl Origin {
    /// What address limits count by: the address, of IPv6 the /64 that one customer gets.
    pub fn rate_key(&self) -> String {
        self.ip.map_or_else(|| "unknown".to_owned(), |ip| Network::of(ip).to_string())
    }
}

/// A session with its fresh tokens: the one time that they are shown.
pub struct Grant {
    /// The account.
    pub user: User,
    /// The session.
    pub session: Session,
    /// The access token.
    pub token: String,
    /// The refresh token.
    pub refresh_token: String,
    /// When the access token ends.
    pub expires_at: Timestamp,
}

/// Fresh tokens before they are granted.
pub(super) struct FreshTokens {
    token: Token,
    refresh: Token,
    expires_at: Timestamp,
}

impl FreshTokens {
    pub fn grant(self, user: User, session: Session) -> Grant {
        let (token, refresh_token) = (self.token.reveal(), self.refresh.reveal());
        Grant { user, session, token, refresh_token, expires_at: self.expires_at }
    }

    pub fn token(self) -> String {
        self.token.reveal()
    }
}

impl Service {
    /// Logs in. Unknown login and wrong password are alike in words and in time.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invalid_credentials`.
    pub async fn log_in(&self, login: Login, origin: Origin) -> Result<Grant> {
        let mut checks = Checks::new();
        if let Some(device) = &origin.device {
            checks.keep("device", text::device(device));
        }
        checks.done()?;
        // What can't be a login or password can't be right; it is answered like any other wrong one.
        let name = text::login(&login.login).unwrap_or_default();
        let plausible = login.password.chars().count() <= crate::model::limits::PASSWORD_CHARS_MAX;
        let password = if plausible { login.password } else { String::new() };

        let mut attempt = self.attempt(login_limits(&name, &origin)).await?;
        let crowded = self.count(&mut attempt, LOGINS_PER_ACCOUNT, name.clone()).await.err();
        let trying = async {
            // Beyond the account's bound, a wrong password, one that is not looked at and an unknown login are all
            // answered `429` after the time of a hash: nobody learns whether the account has a session nearby.
            let believed = crowded.is_none() || self.is_expected(&name, login.session_id, &origin).await?;
            self.log_in_by_password(&name, password, login.session_id, origin, believed).await
        };
        match trying.await {
            Ok(None) => Err(crowded.unwrap_or_else(|| Code::InvalidCredentials.into())),
            decided => {
                self.give_back(attempt).await;
                decided.and_then(|grant| grant.ok_or(Code::InvalidCredentials.into()))
            }
        }
    }

    /// Logs in if the password is right; `None` if not, or if it is not to be believed, which takes as long.
    async fn log_in_by_password(
        &self,
        name: &str,
        password: String,
        reuse: Option<SessionId>,
        origin: Origin,
        believed: bool,
    ) -> Result<Option<Grant>> {
        for _ in 0..VERIFY_TRIES_MAX {
            let (user_id, hash) = self.store.credentials(name).await?.filter(|_| believed).unzip();
            let verdict = self.hasher.verify(password.clone(), hash.clone()).await?;
            let (Some(user_id), Some(mut hash)) = (user_id.filter(|_| verdict != Verdict::Wrong), hash) else {
                return Ok(None);
            };
            if verdict == Verdict::RightButOutdated {
                let new = self.hasher.hash(password.clone()).await?;
                if !self.store.rehash_password(user_id, &hash, &new).await? {
                    continue;
                }
                hash = new;
            }
            let (new, tokens) = self.new_session(user_id, origin.clone());
            let sessions_max = self.limits.sessions_per_user_max;
            match self.store.log_in(&new, &hash, reuse, sessions_max).await {
                // The password changed, or was hashed anew, since it was verified: it may be wrong by now.
                Err(error) if error.code == Code::InvalidCredentials => {}
                Err(error) => return Err(error),
                Ok(LoggedIn { session_id, replaced, ended }) => {
                    self.session_replaced(session_id, replaced).await;
                    self.sessions_ended(ended).await;
                    return self.grant(user_id, session_id, tokens).await.map(Some);
                }
            }
        }
        Err(Error::overloaded())
    }

    /// Closes the connections of the logins before this one everywhere, and forgets their token.
    async fn session_replaced(&self, session_id: SessionId, replaced: Option<Replaced>) {
        if let Some(Replaced { token, logins }) = replaced {
            // Published first: a Redis that hangs must not keep the sockets open.
            self.bus.publish(Event::LoggedInAgain { session_id, logins });
            self.session_cache.forget(&[token]).await;
        }
    }

    /// Spends a refresh token for new tokens. One spent before ends its session. Unknown tokens are counted by address, and
    /// never keep a known one from being refreshed.
    ///
    /// # Errors
    /// `rate_limited`, `invalid_refresh_token`.
    pub async fn refresh(&self, refresh_token: &str, origin: Origin) -> Result<Grant> {
        let refused = || Error::new(Code::InvalidRefreshToken);
        let presented = TokenHash::of_presented(refresh_token);
        let session_id = match presented {
            Some(presented) => {
                let _turn = self.resolves.acquire().await.map_err(Error::internal)?;
                self.store.session_of_refresh_token(presented).await?
            }
            None => None,
        };
        let (Some(presented), Some(session_id)) = (presented, session_id) else {
            self.limit(REFRESHES_PER_ADDRESS, &origin.rate_key()).await?;
            return Err(refused());
        };
        self.limit(REFRESHES_PER_SESSION, &session_id.to_string()).await?;
        let (tokens, kept) = self.fresh_tokens();
        let ip = origin.ip.map(|ip| ip.to_canonical().to_string());
        match self.store.refresh(presented, &kept, ip.as_deref(), self.clock.now()).await? {
            Refreshed::Rotated { session, user_id } => {
                self.session_cache.forget(&[session.token]).await;
                self.grant(user_id, session.id, tokens).await
            }
            Refreshed::Reused(session) => {
                self.sessions_ended(vec![session]).await;
                Err(refused())
            }
            Refreshed::Unknown => Err(refused()),
        }
    }

    /// Who a bearer token stands for.
    ///
    /// # Errors
    /// `not_authenticated`.
    pub async fn authenticate(&self, token: &str) -> Result<Caller> {
        let refused = || Error::new(Code::NotAuthenticated);
        let token = TokenHash::of_presented(token).ok_or_else(refused)?;
        let now = self.clock.now();
        let caller = match self.session_cache.get(token).await {
            Ok(caller) => caller,
            Err(ticket) => {
                let caller = {
                    let _turn = self.resolves.acquire().await.map_err(Error::internal)?;
                    self.store.resolve(token, now).await?.ok_or_else(refused)?
                };
                faults::at(Point::Resolved).await;
                self.session_cache.put(token, caller, ticket).await;
                if caller.last_seen_at < now.minus(LAST_SEEN_EVERY) {
                    self.touch(caller.session_id, now);
                }
                caller
            }
        };
        if caller.expires_at > now { Ok(caller) } else { Err(refused()) }
    }

    /// Notes in passing that a session was seen. The cache's short life makes it rare enough.
    fn touch(&self, session_id: SessionId, now: Timestamp) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.touch_session(session_id, now).await {
                tracing::warn!(%error, "could not note when a session was last seen");
            }
        });
    }

    /// The caller's session and account.
    ///
    /// # Errors
    /// `not_authenticated` if it ended meanwhile.
    pub async fn current_session(&self, caller: Caller) -> Result<(Session, User)> {
        let refused = || Error::new(Code::NotAuthenticated);
        let session = self.store.session(caller.session_id).await?.ok_or_else(refused)?;
        let user = self.store.user(caller.user_id).await?.ok_or_else(refused)?;
        Ok((session, user))
    }

    /// The caller's live sessions, newest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn sessions(&self, caller: Caller) -> Result<Vec<Session>> {
        self.store.sessions(caller, self.clock.now()).await
    }

    /// Ends one of the caller's sessions and closes its connections.
    ///
    /// # Errors
    /// `rate_limited`, `session_not_found`.
    pub async fn end_session(&self, caller: Caller, id: SessionId) -> Result<()> {
        self.count_read(caller.user_id)?;
        let ended = self.store.end_session(caller.user_id, id).await?.ok_or(Error::new(Code::SessionNotFound))?;
        self.sessions_ended(vec![ended]).await;
        Ok(())
    }

    /// Ends all of the caller's sessions but this one.
    ///
    /// # Errors
    /// `rate_limited`, `unavailable`.
    pub async fn end_other_sessions(&self, caller: Caller) -> Result<()> {
        self.count_read(caller.user_id)?;
        let ended = self.store.end_other_sessions(caller.user_id, caller.session_id).await?;
        self.sessions_ended(ended).await;
        Ok(())
    }

    /// Forgets ended sessions and has their connections closed everywhere.
    pub(super) async fn sessions_ended(&self, ended: Vec<EndedSession>) {
        if !ended.is_empty() {
            faults::at(Point::SessionEnded).await;
            // Published first: a Redis that hangs must not keep the sockets open.
            self.bus.publish(Event::SessionsEnded(ended.iter().map(|session| session.id).collect()));
            self.session_cache.forget(&ended.iter().map(|session| session.token).collect::<Vec<_>>()).await;
        }
    }

    /// A session of this user's to be made, and its tokens to be granted.
    pub(super) fn new_session(&self, user_id: UserId, origin: Origin) -> (NewSession, FreshTokens) {
        let now = self.clock.now();
        let (fresh, tokens) = self.fresh_tokens();
        let device = origin.device.and_then(|device| text::device(&device).ok()).filter(|device| !device.is_empty());
        let ip = origin.ip.map(|ip| ip.to_canonical().to_string());
        let id = SessionId::new(now, &mut rand::rng());
        (NewSession { id, user_id, tokens, device, ip, now }, fresh)
    }

    fn fresh_tokens(&self) -> (FreshTokens, SessionTokens) {
        let now = self.clock.now();
        let (token, refresh) = (Token::new(&mut secrets()), Token::new(&mut secrets()));
        let token_expires_at = now.plus(self.limits.token_life);
        let kept = SessionTokens {
            token: token.hash(),
            refresh: refresh.hash(),
            token_expires_at,
            expires_at: now.plus(self.limits.refresh_life),
        };
        (FreshTokens { token, refresh, expires_at: token_expires_at }, kept)
    }

    async fn grant(&self, user_id: UserId, session_id: SessionId, tokens: FreshTokens) -> Result<Grant> {
        let gone = || Error::new(Code::InvalidCredentials);
        let session = self.store.session(session_id).await?.ok_or_else(gone)?;
        let user = self.store.user(user_id).await?.ok_or_else(gone)?;
        Ok(tokens.grant(user, session))
    }
}
