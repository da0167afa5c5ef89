//! Accounts: registration, changing one's own.

use super::Service;
use super::hasher::Verdict;
use super::invites::plausible;
use super::secrets;
use super::sessions::{Grant, Origin};
use crate::model::limits::{CHANGES, CONFIRMATIONS_PER_SESSION, REGISTRATIONS_PER_ADDRESS, VERIFY_TRIES_MAX};
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::token::random_code;
use crate::model::{Account, Code, Error, Result, User, UserId};
use crate::store::{AccountChange, NewUser};

/// What a newcomer tells.
pub struct Registration {
    /// The invite's code.
    pub invite: String,
    /// The name to log in with.
    pub login: String,
    /// The password.
    pub password: String,
    /// The name to show.
    pub name: String,
}

/// What to change of one's account.
pub struct AccountPatch {
    /// Another name.
    pub name: Option<String>,
    /// Another login.
    pub login: Option<String>,
    /// Another password.
    pub password: Option<String>,
    /// The password so far; needed for another login or password.
    pub current_password: Option<String>,
    /// Whether to keep users away who share no chat with this one.
    pub refuse_strangers: Option<bool>,
}

/// An account made by the operator, with the one chance to see its secrets.
pub struct MadeUser {
    /// Its id.
    pub user_id: UserId,
    /// Its login.
    pub login: String,
    /// Its random password.
    pub password: String,
    /// The token of its first session, if one was asked for.
    pub token: Option<String>,
}

impl Service {
    /// Makes an account by invitation, and its first session.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invite_not_found`, `login_taken`.
    pub async fn register(&self, registration: Registration, origin: Origin) -> Result<Grant> {
        let mut checks = Checks::new();
        let login = checks.keep("login", text::login(&registration.login));
        let name = checks.keep("name", text::name(&registration.name));
        checks.keep("password", text::password(&registration.password, &login));
        checks.done()?;
        self.limit(REGISTRATIONS_PER_ADDRESS, &origin.rate_key()).await?;
        let now = self.clock.now();
        // Asked before the expensive hash; the unit of work decides.
        let known =
            plausible(&registration.invite) && self.store.open_invite(&registration.invite, now).await?.is_some();
        if !known {
            return Err(Code::InviteNotFound.into());
        }
        let password_hash = self.hasher.hash(registration.password).await?;
        let user = NewUser { id: UserId::new(now, &mut rand::rng()), login, name, password_hash, created_at: now };
        let (new, tokens) = self.new_session(user.id, origin);
        self.store.register(&registration.invite, &user, &new).await?;
        let session = self.store.session(new.id).await?.ok_or(Error::new(Code::SessionNotFound))?;
        let user = User { id: user.id, login: Some(user.login), name: user.name, created_at: user.created_at };
        Ok(tokens.grant(user, session))
    }

    /// Makes an account for the operator, with a random password, and a first session if asked.
    ///
    /// # Errors
    /// `invalid_fields`, `login_taken`.
    pub async fn make_user(&self, login: &str, name: &str, with_session: bool) -> Result<MadeUser> {
        let mut checks = Checks::new();
        let login = checks.keep("login", text::login(login));
        let name = checks.keep("name", text::name(name));
        checks.done()?;
        let now = self.clock.now();
        let password = random_code(&mut secrets());
        let password_hash = self.hasher.hash(password.clone()).await?;
        let user = NewUser { id: UserId::new(now, &mut rand::rng()), login, name, password_hash, created_at: now };
        self.store.create_user(&user).await?;
        let mut token = None;
        if with_session {
            let (new, tokens) = self.new_session(user.id, Origin::default());
            self.store.log_in(&new, &user.password_hash, None, self.limits.sessions_per_user_max).await?;
            token = Some(tokens.token());
        }
        Ok(MadeUser { user_id: user.id, login: user.login, password, token })
    }

    /// An account, removed or not.
    ///
    /// # Errors
    /// `user_not_found`.
    pub async fn user(&self, id: UserId) -> Result<User> {
        self.store.user(id).await?.ok_or(Error::new(Code::UserNotFound))
    }

    /// The caller's account as its owner sees it.
    ///
    /// # Errors
    /// `user_not_found`.
    pub async fn account(&self, caller: Caller) -> Result<Account> {
        self.store.account(caller.user_id).await?.ok_or(Error::new(Code::UserNotFound))
    }

    /// Changes the caller's account. Another password ends all other sessions.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `wrong_password`, `login_taken`.
    pub async fn change_account(&self, caller: Caller, patch: AccountPatch) -> Result<Account> {
        let mut checks = Checks::new();
        let name = patch.name.map(|name| checks.keep("name", text::name(&name)));
        let login = patch.login.map(|login| checks.keep("login", text::login(&login)));
        if let Some(password) = &patch.password {
            checks.keep("password", text::password(password, login.as_deref().unwrap_or_default()));
        }
        let sensitive = patch.password.is_some() || login.is_some();
        if sensitive && patch.current_password.is_none() {
            checks.fail("current_password", "is needed to change login or password");
        }
        if name.is_none() && !sensitive && patch.refuse_strangers.is_none() {
            checks.fail("name", "nothing to change: give name, login, password or refuse_strangers");
        }
        checks.done()?;
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let mut change =
            AccountChange { name, login, password: None, refuse_strangers: patch.refuse_strangers, confirmed: None };
        let current_password = patch.current_password.unwrap_or_default();
        for _ in 0..VERIFY_TRIES_MAX {
            if sensitive {
                change.confirmed = Some(self.confirm(caller, current_password.clone()).await?);
            }
            if let (Some(password), None) = (&patch.password, &change.password) {
                change.password = Some((self.hasher.hash(password.clone()).await?, caller.session_id));
            }
            match self.store.change_account(caller.user_id, &change).await {
                // The password changed, or was hashed anew, since it was confirmed.
                Err(error) if error.code == Code::WrongPassword => {}
                Err(error) => return Err(error),
                Ok((account, ended)) => {
                    self.sessions_ended(ended).await;
                    return Ok(account);
                }
            }
        }
        Err(Error::overloaded())
    }

    /// Makes sure that the caller knows the account's password. Returns the hash that it fits: what is done on its strength
    /// compares it again under the account's lock. Only wrong passwords count.
    pub(super) async fn confirm(&self, caller: Caller, password: String) -> Result<String> {
        let attempt = self.attempt(vec![(CONFIRMATIONS_PER_SESSION, caller.session_id.to_string())]).await?;
        let verifying = async {
            let hash = self.store.password_hash(caller.user_id).await?;
            let verdict = self.hasher.verify(password, hash.clone()).await?;
            Ok(hash.filter(|_| verdict != Verdict::Wrong))
        };
        match verifying.await {
            Ok(None) => Err(Code::WrongPassword.into()),
            decided => {
                self.give_back(attempt).await;
                decided.and_then(|hash| hash.ok_or(Code::WrongPassword.into()))
            }
        }
    }
}
