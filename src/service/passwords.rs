//! Confirmation of the caller's password before a change that needs it.

use super::guesses::Guesses;
use super::hasher::{Hasher, PasswordCheck};
use crate::model::limits::CONFIRMATIONS_PER_SESSION;
use crate::model::session::Caller;
use crate::model::{Code, Result};
use crate::store::Store;

/// Confirms passwords of authenticated users.
#[derive(Clone)]
pub(super) struct Passwords {
    pub store: Store,
    pub hasher: Hasher,
    pub guesses: Guesses,
}

impl Passwords {
    /// Checks the password of the caller's account and returns the hash that it matches. The unit
    /// of work that relies on the check compares that hash again under the account's row lock. Only
    /// wrong passwords count against the limit.
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
            // The permit is not given back, so the wrong password counts.
            Ok(None) => Err(Code::WrongPassword.into()),
            outcome => {
                self.guesses.give_back(attempt).await;
                outcome.and_then(|hash| hash.ok_or(Code::WrongPassword.into()))
            }
        }
    }
}
