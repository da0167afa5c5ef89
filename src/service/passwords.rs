//! Confirmation of the caller's password before a change that needs it.

use super::guesses::Guesses;
use super::hasher::{Hasher, PasswordCheck};
use crate::model::limits::CONFIRMATIONS_PER_SESSION;
use crate::model::session::Caller;
use crate::model::{Code, Result};
use crate::store::Store;

/// Confirms passwords of users who are logged in.
#[derive(Clone)]
pub(super) struct Passwords {
    pub store: Store,
    pub hasher: Hasher,
    pub guesses: Guesses,
}

impl Passwords {
    /// Checks the password of the caller's account and returns the hash that it fits. The unit of
    /// work that relies on it compares that hash again under the account's lock. Only wrong
    /// passwords count against the limit.
    ///
    /// # Errors
    /// `rate_limited`, `wrong_password`, `unavailable`.
    pub async fn confirm(&self, caller: Caller, password: String) -> Result<String> {
        let limits = vec![(CONFIRMATIONS_PER_SESSION, caller.session_id.to_string())];
        let attempt = self.guesses.begin(limits).await?;

        let verifying = async {
            let hash = self.store.password_hash(caller.user_id).await?;
            let check = self.hasher.verify(password, hash.clone()).await?;
            Ok(hash.filter(|_| check != PasswordCheck::Wrong))
        };
        match verifying.await {
            Ok(None) => Err(Code::WrongPassword.into()),
            decided => {
                self.guesses.give_back(attempt).await;
                decided.and_then(|hash| hash.ok_or(Code::WrongPassword.into()))
            }
        }
    }
}
