//! Password hashing by argon2id on blocking threads, with bounded concurrency.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use crate::model::limits::PasswordCost;
use crate::model::{Error, Result};

/// Threads that argon2 uses for one hash.
const LANES: u32 = 1;
/// How long a hash waits for a permit; then the request is answered `503`.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Hashes and verifies passwords.
#[derive(Clone)]
pub struct Hasher {
    argon2: Argon2<'static>,
    /// The prefix of every hash that has the current parameters.
    current_prefix: Arc<str>,
    permits: Arc<Semaphore>,
    /// The hash for unknown logins, so that they take as long to verify as existing ones.
    decoy: Arc<str>,
}

/// The result of a check of a password against a hash.
#[derive(Debug, PartialEq, Eq)]
pub enum PasswordCheck {
    Wrong,
    Right,
    /// The password is right, but its hash does not have the current parameters.
    RightButOutdated,
}

impl Hasher {
    /// A hasher that hashes at most `at_once` passwords at a time, each at this cost.
    ///
    /// # Errors
    /// `internal` if argon2 refuses the parameters.
    pub fn new(at_once: usize, cost: PasswordCost) -> Result<Self> {
        let PasswordCost { memory_kib, passes } = cost;
        let params = Params::new(memory_kib, passes, LANES, None)
            .map_err(|error| Error::internal(error.to_string()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = hash(&argon2, "a password of no account")?;
        let current_prefix = format!("$argon2id$v=19$m={memory_kib},t={passes},p={LANES}$").into();

        Ok(Self {
            argon2,
            current_prefix,
            permits: Arc::new(Semaphore::new(at_once)),
            decoy: decoy.into(),
        })
    }

    /// The hash of a password, in PHC string format with a random salt.
    ///
    /// # Errors
    /// `unavailable` if no permit is free within [`WAIT_MAX`].
    pub async fn hash(&self, password: String) -> Result<String> {
        self.with_permit(move |argon2| hash(argon2, &password)).await?
    }

    /// Checks a password against a hash. Without a hash, the check takes as long and returns
    /// [`PasswordCheck::Wrong`].
    ///
    /// # Errors
    /// `unavailable` if no permit is free within [`WAIT_MAX`].
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<PasswordCheck> {
        let (decoy, current_prefix) = (self.decoy.clone(), self.current_prefix.clone());
        self.with_permit(move |argon2| {
            let fits = argon2
                .verify_password(password.as_bytes(), hash.as_deref().unwrap_or(&decoy))
                .is_ok();

            match hash {
                Some(hash) if fits => {
                    if hash.starts_with(&*current_prefix) {
                        PasswordCheck::Right
                    } else {
                        PasswordCheck::RightButOutdated
                    }
                }
                _ => PasswordCheck::Wrong,
            }
        })
        .await
    }

    async fn with_permit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T> {
        let permit = tokio::time::timeout(WAIT_MAX, self.permits.clone().acquire_owned())
            .await
            .map_err(Error::unavailable)?
            .map_err(Error::internal)?;

        let argon2 = self.argon2.clone();
        tokio::task::spawn_blocking(move || {
            // The permit belongs to the thread, not to the request: the hash goes on after a client
            // disconnects.
            let _permit = permit;
            work(&argon2)
        })
        .await
        .map_err(Error::internal)
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String> {
    let hash: PasswordHash = argon2
        .hash_password(password.as_bytes())
        .map_err(|error| Error::internal(error.to_string()))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::disallowed_methods, reason = "the work is on a thread that may block")]
    async fn no_more_passwords_are_hashed_at_once_than_configured() {
        let (hasher, working) =
            (Hasher::new(2, PasswordCost::default()).unwrap(), Arc::new(AtomicUsize::new(0)));

        let work = || {
            let working = working.clone();
            hasher.with_permit(move |_| {
                let others = working.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(10));
                working.fetch_sub(1, Ordering::SeqCst);
                others
            })
        };

        let others = futures_util::future::join_all((0..20).map(|_| work())).await;
        assert_eq!(others.into_iter().map(Result::unwrap).max(), Some(1));
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_and_no_other() {
        let hasher = Hasher::new(1, PasswordCost::default()).unwrap();
        let hash = hasher.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");

        assert_eq!(
            hasher.verify("correct horse".into(), Some(hash.clone())).await.unwrap(),
            PasswordCheck::Right
        );
        assert_eq!(
            hasher.verify("battery staple".into(), Some(hash)).await.unwrap(),
            PasswordCheck::Wrong
        );
        assert_eq!(
            hasher.verify("a password of no account".into(), None).await.unwrap(),
            PasswordCheck::Wrong
        );
    }
}
