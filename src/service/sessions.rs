//! Sessions: logging in, resolving tokens, refreshing and ending.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::budget::Budgets;
use super::guesses::{Guesses, login_limits};
use super::hasher::{Hasher, PasswordCheck};
use super::random::secrets;
use super::rates::RateLimits;
use crate::cluster::{Bus, SessionCache};
use crate::model::faults::{self, Point};
use crate::model::limits::{
    LAST_SEEN_EVERY, LOGINS_PER_ACCOUNT, PASSWORD_CHARS_MAX, REFRESHES_PER_ADDRESS,
    REFRESHES_PER_SESSION, VERIFY_TRIES_MAX,
};
use crate::model::session::{Caller, Origin};
use crate::model::text::{self, Checks};
use crate::model::token::{Token, TokenHash};
use crate::model::{
    Clock, Code, Error, Event, Result, Session, SessionId, Timestamp, User, UserId,
};
use crate::store::{EndedSession, LoggedIn, NewSession, Refreshed, Replaced, SessionTokens, Store};
use crate::tasks::Tasks;

/// A client's request to log in.
pub struct Login {
    /// The login of the account; upper case counts as lower case.
    pub login: String,
    /// The password, in clear text.
    pub password: String,
    /// The live session of the account that gets new tokens. `None` creates a session.
    pub session_id: Option<SessionId>,
}

/// A session with its new tokens. The tokens are shown only here.
pub struct Grant {
    pub user: User,
    pub session: Session,
    /// The access token.
    pub token: String,
    pub refresh_token: String,
    /// When the access token expires.
    pub expires_at: Timestamp,
}

/// New tokens in clear text, to be granted once the store has their hashes.
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

/// The service for sessions.
pub struct Sessions {
    pub(super) store: Store,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) cache: Arc<dyn SessionCache>,
    pub(super) hasher: Hasher,
    pub(super) guesses: Guesses,
    pub(super) rates: RateLimits,
    pub(super) budgets: Arc<Budgets>,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    /// Permits to read a token from the store.
    pub(super) resolves: Semaphore,
    pub(super) per_user_max: i64,
    pub(super) token_life: Duration,
    pub(super) refresh_life: Duration,
}

impl Sessions {
    /// Logs in. An unknown login and a wrong password get the same answer after the same time.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invalid_credentials`.
    pub async fn log_in(&self, login: Login, origin: Origin) -> Result<Grant> {
        let mut checks = Checks::new();
        if let Some(device) = &origin.device {
            checks.keep("device", text::device(device));
        }
        checks.done()?;

        // Text that can't be a login or a password gets the answer of a wrong one.
        let name = text::login(&login.login).unwrap_or_default();
        let is_plausible = login.password.chars().count() <= PASSWORD_CHARS_MAX;
        let password = if is_plausible { login.password } else { String::new() };

        let mut attempt = self.guesses.begin(login_limits(&name, &origin)).await?;
        let over_limit =
            self.guesses.count(&mut attempt, LOGINS_PER_ACCOUNT, name.clone()).await.err();

        let trying = async {
            // Over the account's limit, only an expected attempt may succeed. A wrong password, an
            // unexpected attempt and an unknown login all get `429` after the time of a hash. So
            // the answer does not reveal whether the account has a session in the client's network.
            let may_succeed = over_limit.is_none()
                || self.guesses.is_expected(&name, login.session_id, &origin).await?;
            self.log_in_by_password(&name, password, login.session_id, origin, may_succeed).await
        };

        match trying.await {
            // The permits are not given back, so the failure counts.
            Ok(None) => Err(over_limit.unwrap_or_else(|| Code::InvalidCredentials.into())),
            outcome => {
                self.guesses.give_back(attempt).await;
                outcome.and_then(|grant| grant.ok_or(Code::InvalidCredentials.into()))
            }
        }
    }

    /// Logs in if the password is right. Returns `None` if it is wrong or the attempt must not
    /// succeed, after the same time.
    async fn log_in_by_password(
        &self,
        name: &str,
        password: String,
        reuse: Option<SessionId>,
        origin: Origin,
        may_succeed: bool,
    ) -> Result<Option<Grant>> {
        for _ in 0..VERIFY_TRIES_MAX {
            let (user_id, hash) =
                self.store.credentials(name).await?.filter(|_| may_succeed).unzip();
            let check = self.hasher.verify(password.clone(), hash.clone()).await?;
            let (Some(user_id), Some(mut hash)) =
                (user_id.filter(|_| check != PasswordCheck::Wrong), hash)
            else {
                return Ok(None);
            };

            if check == PasswordCheck::RightButOutdated {
                let new = self.hasher.hash(password.clone()).await?;
                if !self.store.rehash_password(user_id, &hash, &new).await? {
                    // The password changed after it was verified: verify it again.
                    continue;
                }
                hash = new;
            }

            let (new, tokens) = self.prepare(user_id, origin.clone());
            match self.store.log_in(&new, &hash, reuse, self.per_user_max).await {
                // The password changed, or was rehashed, after it was verified: verify it again.
                Err(error) if error.code == Code::InvalidCredentials => {}
                Err(error) => return Err(error),
                Ok(LoggedIn { session_id, replaced, ended }) => {
                    self.announce_replaced(session_id, replaced).await;
                    self.announce_ended(ended).await;
                    return self.grant(user_id, session_id, tokens).await.map(Some);
                }
            }
        }
        Err(Error::overloaded())
    }

    /// Closes the connections of earlier logins into the session on all replicas, and removes their
    /// token from the cache.
    async fn announce_replaced(&self, session_id: SessionId, replaced: Option<Replaced>) {
        if let Some(Replaced { token, logins }) = replaced {
            // Published first: a Redis that hangs must not keep connections open.
            self.bus.publish(Event::LoggedInAgain { session_id, logins });
            self.cache.forget(&[token]).await;
        }
    }

    /// Exchanges a refresh token for new tokens. A spent refresh token ends its session, except the
    /// previous token during its grace. Unknown refresh tokens count against the address. Known
    /// ones count only against their session, so that unknown ones never block them.
    ///
    /// # Errors
    /// `rate_limited`, `invalid_refresh_token`.
    pub async fn refresh(&self, refresh_token: &str, origin: Origin) -> Result<Grant> {
        let refused = || Error::new(Code::InvalidRefreshToken);
        let presented = TokenHash::of_presented(refresh_token);
        let session_id = match presented {
            Some(presented) => {
                let _permit = self.resolves.acquire().await.map_err(Error::internal)?;
                self.store.session_of_refresh_token(presented).await?
            }
            None => None,
        };

        let (Some(presented), Some(session_id)) = (presented, session_id) else {
            self.rates.count(REFRESHES_PER_ADDRESS, &origin.rate_key()).await?;
            return Err(refused());
        };

        self.rates.count(REFRESHES_PER_SESSION, &session_id.to_string()).await?;

        let (tokens, hashes) = self.fresh_tokens();
        let ip = origin.ip.map(|ip| ip.to_canonical().to_string());
        match self.store.refresh(presented, &hashes, ip.as_deref(), self.clock.now()).await? {
            Refreshed::Rotated { session, user_id } => {
                self.cache.forget(&[session.token]).await;
                self.grant(user_id, session.id, tokens).await
            }
            Refreshed::Reused(session) => {
                self.announce_ended(vec![session]).await;
                Err(refused())
            }
            Refreshed::Unknown => Err(refused()),
        }
    }

    /// Resolves an access token to its caller.
    ///
    /// # Errors
    /// `not_authenticated`.
    pub async fn authenticate(&self, token: &str) -> Result<Caller> {
        let refused = || Error::new(Code::NotAuthenticated);
        let token = TokenHash::of_presented(token).ok_or_else(refused)?;
        let now = self.clock.now();

        let caller = match self.cache.get(token).await {
            Ok(caller) => caller,
            // The ticket keeps the cache from storing a caller whose token ends during the query.
            Err(ticket) => {
                let caller = {
                    let _permit = self.resolves.acquire().await.map_err(Error::internal)?;
                    self.store.resolve(token, now).await?.ok_or_else(refused)?
                };
                faults::at(Point::Resolved).await;

                self.cache.put(token, caller, ticket).await;
                if caller.last_seen_at < now.minus(LAST_SEEN_EVERY) {
                    self.touch(caller.session_id, now);
                }
                caller
            }
        };

        // A cached caller may have expired since the query.
        if caller.expires_at > now { Ok(caller) } else { Err(refused()) }
    }

    /// Stores the `last_seen_at` of a session in the background. This is rare: it follows a cache
    /// miss, at most once in [`LAST_SEEN_EVERY`].
    fn touch(&self, session_id: SessionId, now: Timestamp) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.set_session_last_seen(session_id, now).await {
                tracing::warn!(
                    %error,
                    "failed to store last_seen_at of a session; retried at a later request"
                );
            }
        });
    }

    /// The caller's session and account.
    ///
    /// # Errors
    /// `not_authenticated` if the session has ended.
    pub async fn current(&self, caller: Caller) -> Result<(Session, User)> {
        let refused = || Error::new(Code::NotAuthenticated);
        let session = self.store.session(caller.session_id).await?.ok_or_else(refused)?;
        let user = self.store.user(caller.user_id).await?.ok_or_else(refused)?;
        Ok((session, user))
    }

    /// The caller's live sessions, newest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn list(&self, caller: Caller) -> Result<Vec<Session>> {
        self.store.sessions(caller, self.clock.now()).await
    }

    /// Number of logins into a live session after the first, read from the store. `None` if the
    /// session has ended.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn logins(&self, session_id: SessionId) -> Result<Option<i64>> {
        let live = self.store.live_sessions(&[session_id], self.clock.now()).await?;
        Ok(live.get(&session_id).copied())
    }

    /// Ends one of the caller's sessions and closes its connections.
    ///
    /// # Errors
    /// `rate_limited`, `session_not_found`.
    pub async fn end(&self, caller: Caller, id: SessionId) -> Result<()> {
        self.budgets.count_read(caller.user_id)?;
        let ended = self
            .store
            .end_session(caller.user_id, id)
            .await?
            .ok_or(Error::new(Code::SessionNotFound))?;
        self.announce_ended(vec![ended]).await;
        Ok(())
    }

    /// Ends all of the caller's sessions except the current one.
    ///
    /// # Errors
    /// `rate_limited`, `unavailable`.
    pub async fn end_others(&self, caller: Caller) -> Result<()> {
        self.budgets.count_read(caller.user_id)?;
        let ended = self.store.end_other_sessions(caller.user_id, caller.session_id).await?;
        self.announce_ended(ended).await;
        Ok(())
    }

    /// Closes the connections of ended sessions on all replicas, and removes their tokens from the
    /// cache.
    pub(crate) async fn announce_ended(&self, ended: Vec<EndedSession>) {
        if ended.is_empty() {
            return;
        }
        faults::at(Point::SessionEnded).await;

        // Published first: a Redis that hangs must not keep connections open.
        self.bus.publish(Event::SessionsEnded(ended.iter().map(|session| session.id).collect()));
        self.cache.forget(&ended.iter().map(|session| session.token).collect::<Vec<_>>()).await;
    }

    /// A session for the store to insert, and the tokens to grant after the insert.
    pub(super) fn prepare(&self, user_id: UserId, origin: Origin) -> (NewSession, FreshTokens) {
        let now = self.clock.now();
        let (tokens, hashes) = self.fresh_tokens();

        let device = origin
            .device
            .and_then(|device| text::device(&device).ok())
            .filter(|device| !device.is_empty());
        let ip = origin.ip.map(|ip| ip.to_canonical().to_string());
        let id = SessionId::new(now, &mut rand::rng());
        (NewSession { id, user_id, tokens: hashes, device, ip, now }, tokens)
    }

    fn fresh_tokens(&self) -> (FreshTokens, SessionTokens) {
        let now = self.clock.now();
        let (token, refresh) = (Token::new(&mut secrets()), Token::new(&mut secrets()));
        let token_expires_at = now.plus(self.token_life);
        let hashes = SessionTokens {
            token: token.hash(),
            refresh: refresh.hash(),
            token_expires_at,
            expires_at: now.plus(self.refresh_life),
        };
        (FreshTokens { token, refresh, expires_at: token_expires_at }, hashes)
    }

    async fn grant(
        &self,
        user_id: UserId,
        session_id: SessionId,
        tokens: FreshTokens,
    ) -> Result<Grant> {
        let gone = || Error::new(Code::InvalidCredentials);
        let session = self.store.session(session_id).await?.ok_or_else(gone)?;
        let user = self.store.user(user_id).await?.ok_or_else(gone)?;
        Ok(tokens.grant(user, session))
    }
}
