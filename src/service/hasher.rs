//! Passwords: argon2id, off the async threads, a bounded number at once.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use crate::model::limits::PasswordCost;
use crate::model::{Error, Result};

/// Threads that argon2 may use for one hash.
const LANES: u32 = 1;
/// How long a password waits for its turn before the request is answered `503`.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Hashes and verifies passwords.
#[derive(Clone)]
pub struct Hasher {
    argon2: Argon2<'static>,
    /// How a hash of today's parameters begins.
    current_prefix: Arc<str>,
    turns: Arc<Semaphore>,
    /// The hash of nothing anybody knows: verifying against it costs what a real account costs.
    decoy: Arc<str>,
}

/// Whether a password fits.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It doesn't.
    Wrong,
    /// It does.
    Right,
    /// It does, but the hash was made with other parameters than today's.
    RightButOutdated,
}

impl Hasher {
    /// A hasher that works on `at_once` passwords at a time, each at this cost.
    ///
    /// # Errors
    /// `internal` if the parameters are not argon2's.
    pub fn new(at_once: usize, cost: PasswordCost) -> Result<Self> {
        let PasswordCost { memory_kib, passes } = cost;
        let params =
            Params::new(memory_kib, passes, LANES, None).map_err(|error| Error::internal(error.to_string()))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = hash(&argon2, "a password that is nobody's")?;
        let current_prefix = format!("$argon2id$v=19$m={memory_kib},t={passes},p={LANES}$").into();

        Ok(Self { argon2, current_prefix, turns: Arc::new(Semaphore::new(at_once)), decoy: decoy.into() })
    }

    /// The hash of a password, in PHC string format with a random salt.
    ///
    /// # Errors
    /// `unavailable` if no turn came in time.
    pub async fn hash(&self, password: String) -> Result<String> {
        self.in_turn(move |argon2| hash(argon2, &password)).await?
    }

    /// Whether the password fits the hash. Without a hash it takes as long and is wrong.
    ///
    /// # Errors
    /// `unavailable` if no turn came in time.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<Verdict> {
        let (decoy, current_prefix) = (self.decoy.clone(), self.current_prefix.clone());
        self.in_turn(move |argon2| {
            let known = hash.is_some();
            let fits = argon2.verify_password(password.as_bytes(), hash.as_deref().unwrap_or(&decoy)).is_ok();
            match hash {
                Some(hash) if fits && known => {
                    if hash.starts_with(&*current_prefix) {
                        Verdict::Right
                    } else {
                        Verdict::RightButOutdated
                    }
                }
                _ => Verdict::Wrong,
            }
        })
        .await
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static) -> Result<T> {
        let turn = tokio::time::timeout(WAIT_MAX, self.turns.clone().acquire_owned())
            .await
            .map_err(Error::unavailable)?
            .map_err(Error::internal)?;
        let argon2 = self.argon2.clone();
        tokio::task::spawn_blocking(move || {
            // Held by the work, not by the request: a client that goes away does not make room for another hash.
            let _turn = turn;
            work(&argon2)
        })
        .await
        .map_err(Error::internal)
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String> {
    let hash: PasswordHash =
        argon2.hash_password(password.as_bytes()).map_err(|error| Error::internal(error.to_string()))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::disallowed_methods, reason = "the work is on a thread that may block")]
    async fn no_more_work_at_a_time_than_they_were_told_to() {
        let (hasher, working) = (Hasher::new(2, PasswordCost::default()).unwrap(), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let working = working.clone();
            hasher.in_turn(move |_| {
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
        assert_eq!(hasher.verify("correct horse".into(), Some(hash.clone())).await.unwrap(), Verdict::Right);
        assert_eq!(hasher.verify("battery staple".into(), Some(hash)).await.unwrap(), Verdict::Wrong);
        assert_eq!(hasher.verify("a password that is nobody's".into(), None).await.unwrap(), Verdict::Wrong);
    }
}
