//! Accounts: registration, and changes by users to their own accounts.

use std::sync::Arc;

use super::hasher::Hasher;
use super::invites::is_plausible;
use super::passwords::Passwords;
use super::random::secrets;
use super::rates::RateLimits;
use super::sessions::{Grant, Sessions};
use crate::model::limits::{CHANGES, REGISTRATIONS_PER_ADDRESS, VERIFY_TRIES_MAX};
use crate::model::session::{Caller, Origin};
use crate::model::text::{self, Checks};
use crate::model::token::random_code;
use crate::model::{Account, Clock, Code, Error, Result, User, UserId};
use crate::store::{AccountChange, NewUser, Store};

/// A client's request to register.
pub struct Registration {
    /// The invite's code.
    pub invite: String,
    /// The name for logging in.
    pub login: String,
    pub password: String,
    /// The name that other users see.
    pub name: String,
}

/// Changes to the caller's account. Fields that are `None` keep their value.
pub struct AccountPatch {
    /// The name that other users see.
    pub name: Option<String>,
    /// The name for logging in.
    pub login: Option<String>,
    /// The new password.
    pub password: Option<String>,
    /// Required to change the login or the password.
    pub current_password: Option<String>,
    /// Whether users that share no chat with the caller must not bring the caller into one.
    pub refuse_strangers: Option<bool>,
}

/// An account that the operator created. Its secrets are shown only here.
pub struct MadeUser {
    /// The id of the new account.
    pub user_id: UserId,
    /// The name for logging in, in lower case.
    pub login: String,
    /// The random password, in clear text.
    pub password: String,
    /// The access token of the first session; `None` if no session was requested.
    pub token: Option<String>,
}

/// The service for accounts.
pub struct Accounts {
    pub(super) store: Store,
    pub(super) hasher: Hasher,
    pub(super) passwords: Passwords,
    pub(super) sessions: Arc<Sessions>,
    pub(super) rates: RateLimits,
    pub(super) clock: Clock,
    pub(super) sessions_max: i64,
}

impl Accounts {
    /// Creates an account by an invite, and the account's first session.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invite_not_found`, `login_taken`.
    pub async fn register(&self, registration: Registration, origin: Origin) -> Result<Grant> {
        let mut checks = Checks::new();
        let login = checks.keep("login", text::login(&registration.login));
        let name = checks.keep("name", text::name(&registration.name));
        checks.keep("password", text::password(&registration.password, &login));
        checks.done()?;

        self.rates.count(REGISTRATIONS_PER_ADDRESS, &origin.rate_key()).await?;
        self.check_invite(&registration.invite).await?;
        let user = self.new_user(login, name, registration.password).await?;

        let (new, tokens) = self.sessions.prepare(user.id, origin);
        self.store.register(&registration.invite, &user, &new).await?;

        let session = self.store.session(new.id).await?.ok_or(Error::new(Code::SessionNotFound))?;
        let user = User {
            id: user.id,
            login: Some(user.login),
            name: user.name,
            created_at: user.created_at,
        };
        Ok(tokens.grant(user, session))
    }

    /// Refuses a code without an open invite before the expensive hash. The unit of work checks the
    /// invite again.
    async fn check_invite(&self, code: &str) -> Result<()> {
        let is_open =
            is_plausible(code) && self.store.open_invite(code, self.clock.now()).await?.is_some();
        if is_open { Ok(()) } else { Err(Code::InviteNotFound.into()) }
    }

    async fn new_user(&self, login: String, name: String, password: String) -> Result<NewUser> {
        let now = self.clock.now();
        let password_hash = self.hasher.hash(password).await?;
        Ok(NewUser {
            id: UserId::new(now, &mut rand::rng()),
            login,
            name,
            password_hash,
            created_at: now,
        })
    }

    /// Creates an account for the operator with a random password, and a first session if
    /// `with_session`.
    ///
    /// # Errors
    /// `invalid_fields`, `login_taken`.
    pub async fn make_user(&self, login: &str, name: &str, with_session: bool) -> Result<MadeUser> {
        let mut checks = Checks::new();
        let login = checks.keep("login", text::login(login));
        let name = checks.keep("name", text::name(name));
        checks.done()?;

        let password = random_code(&mut secrets());
        let user = self.new_user(login, name, password.clone()).await?;
        self.store.create_user(&user).await?;

        let mut token = None;
        if with_session {
            let (new, tokens) = self.sessions.prepare(user.id, Origin::default());
            self.store.log_in(&new, &user.password_hash, None, self.sessions_max).await?;
            token = Some(tokens.token());
        }
        Ok(MadeUser { user_id: user.id, login: user.login, password, token })
    }

    /// An account as other users see it. A removed account is found too.
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
    pub async fn own(&self, caller: Caller) -> Result<Account> {
        self.store.account(caller.user_id).await?.ok_or(Error::new(Code::UserNotFound))
    }

    /// Changes the caller's account. A new password ends all other sessions.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `wrong_password`, `login_taken`.
    pub async fn change(&self, caller: Caller, patch: AccountPatch) -> Result<Account> {
        let (mut change, passwords) = checked(patch)?;
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        for _ in 0..VERIFY_TRIES_MAX {
            if let Some(current) = &passwords.current {
                change.confirmed = Some(self.passwords.confirm(caller, current.clone()).await?);
            }
            // Hashed once, after the first confirmation: a wrong password must not cost a hash.
            if let (Some(new), None) = (&passwords.new, &change.password) {
                change.password = Some((self.hasher.hash(new.clone()).await?, caller.session_id));
            }

            match self.store.change_account(caller.user_id, &change).await {
                // The password changed, or was rehashed, after it was confirmed: confirm it again.
                Err(error) if error.code == Code::WrongPassword => {}
                Err(error) => return Err(error),
                Ok((account, ended)) => {
                    self.sessions.announce_ended(ended).await;
                    return Ok(account);
                }
            }
        }
        Err(Error::overloaded())
    }
}

/// The passwords of a patch, in clear text.
struct PatchPasswords {
    /// `None` if no change requires the current password.
    current: Option<String>,
    new: Option<String>,
}

/// Checks the fields of a patch, and separates the passwords.
///
/// # Errors
/// `invalid_fields`.
fn checked(patch: AccountPatch) -> Result<(AccountChange, PatchPasswords)> {
    let AccountPatch { name, login, password, current_password, refuse_strangers } = patch;

    let mut checks = Checks::new();
    let name = name.map(|name| checks.keep("name", text::name(&name)));
    let login = login.map(|login| checks.keep("login", text::login(&login)));
    if let Some(password) = &password {
        checks.keep("password", text::password(password, login.as_deref().unwrap_or_default()));
    }

    let sensitive = password.is_some() || login.is_some();
    if sensitive && current_password.is_none() {
        checks.fail("current_password", "is required to change the login or the password");
    }
    if name.is_none() && !sensitive && refuse_strangers.is_none() {
        checks.fail("name", "nothing to change: give name, login, password or refuse_strangers");
    }
    checks.done()?;

    let passwords =
        PatchPasswords { current: current_password.filter(|_| sensitive), new: password };
    Ok((
        AccountChange { name, login, password: None, refuse_strangers, confirmed: None },
        passwords,
    ))
}
