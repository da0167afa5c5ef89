//! Limits on password guesses. Only failures count. An attempt takes its permits before the
//! password is checked, so that concurrent attempts are counted exactly. It gives them back unless
//! the password was wrong.
//!
//! A login attempt counts against its address, against the wider networks of the address, and
//! against the account at that address. So an attacker at another address can't lock the account's
//! owner out.
//!
//! It also counts against the account over all addresses, which bounds guesses from many networks.
//! This limit does not apply to an attempt from a network where the account has a live session, nor
//! to an attempt that names a live session of the account. So a logged-in user can log in again.

use super::rates::RateLimits;
use crate::cluster::Permit;
use crate::model::address::Network;
use crate::model::limits::{
    LOGINS_PER_ACCOUNT_AND_ADDRESS, LOGINS_PER_ADDRESS, LOGINS_PER_NETWORK_48,
    LOGINS_PER_NETWORK_56, Rate,
};
use crate::model::session::Origin;
use crate::model::{Clock, Result, SessionId};
use crate::store::Store;

/// The permits of an attempt.
#[derive(Default)]
pub(super) struct Attempt {
    permits: Vec<(Rate, String, Permit)>,
}

/// Counts attempts.
#[derive(Clone)]
pub(super) struct Guesses {
    pub store: Store,
    pub rates: RateLimits,
    pub clock: Clock,
}

impl Guesses {
    /// Takes a permit under each limit, or under none of them.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn begin(&self, limits: Vec<(Rate, String)>) -> Result<Attempt> {
        let mut attempt = Attempt::default();
        for (rate, key) in limits {
            if let Err(error) = self.count(&mut attempt, rate, key).await {
                // No password was checked. Attempts that one limit refuses must not use up another.
                self.give_back(attempt).await;
                return Err(error);
            }
        }
        Ok(attempt)
    }

    /// Takes a further permit for an attempt.
    ///
    /// # Errors
    /// `rate_limited`; the attempt keeps its other permits.
    pub async fn count(&self, attempt: &mut Attempt, rate: Rate, key: String) -> Result<()> {
        if let Some(permit) = self.rates.take(rate, &key).await? {
            attempt.permits.push((rate, key, permit));
        }
        Ok(())
    }

    /// Gives the permits of an attempt back: the password was right, or was not checked.
    pub async fn give_back(&self, attempt: Attempt) {
        for (rate, key, permit) in attempt.permits {
            self.rates.give_back(rate, &key, permit).await;
        }
    }

    /// Whether an attempt comes from a network where this login has a live session, or names a live
    /// session of this login. An unknown login costs the same query.
    pub async fn is_expected(
        &self,
        login: &str,
        named: Option<SessionId>,
        origin: &Origin,
    ) -> Result<bool> {
        let sessions = self.store.live_sessions_of_login(login, self.clock.now()).await?;

        let network = origin.ip.map(Network::of);
        let network_of =
            |ip: &Option<String>| ip.as_ref().and_then(|ip| ip.parse().ok()).map(Network::of);
        Ok(sessions
            .iter()
            .any(|(id, ip)| named == Some(*id) || (network.is_some() && network_of(ip) == network)))
    }
}

/// The limits of a login attempt, except the limit of the account over all addresses.
pub(super) fn login_limits(login: &str, origin: &Origin) -> Vec<(Rate, String)> {
    let mut limits = vec![(LOGINS_PER_ADDRESS, origin.rate_key())];
    for network in origin.ip.into_iter().flat_map(Network::all) {
        match network.prefix() {
            56 => limits.push((LOGINS_PER_NETWORK_56, network.to_string())),
            48 => limits.push((LOGINS_PER_NETWORK_48, network.to_string())),
            _ => {}
        }
    }
    limits.push((LOGINS_PER_ACCOUNT_AND_ADDRESS, format!("{login} {}", origin.rate_key())));
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::RateLimiter;
    use crate::cluster::memory::MemoryRateLimiter;
    use crate::model::Timestamp;

    fn from(ip: &str) -> Origin {
        Origin { ip: Some(ip.parse().unwrap()), device: None }
    }

    /// How many guesses are allowed at one moment if each of these addresses makes `each` guesses.
    /// Each guess of an address is at another account.
    async fn guesses(addresses: impl Iterator<Item = String>, each: usize) -> usize {
        let (limiter, now, mut granted) =
            (MemoryRateLimiter::default(), Timestamp::from_ms(1_795_305_599_123), 0);

        for address in addresses {
            for account in 0..each {
                let mut taken = Vec::new();
                for (rate, key) in login_limits(&format!("u{account}"), &from(&address)) {
                    match limiter.take(rate, &key, now).await {
                        Ok(permit) => taken.push((rate, key, permit)),
                        Err(_) => break,
                    }
                }

                if taken.len() == login_limits("u", &from(&address)).len() {
                    granted += 1;
                } else {
                    for (rate, key, permit) in taken {
                        limiter.give_back(rate, &key, permit, now).await;
                    }
                }
            }
        }

        granted
    }

    #[tokio::test]
    async fn an_address_and_each_wider_network_has_a_larger_bound_of_its_own() {
        assert_eq!(guesses(["203.0.113.7".to_owned()].into_iter(), 100).await, 60);
        assert_eq!(guesses((0..4).map(|host| format!("203.0.113.{host}")), 100).await, 240);

        assert_eq!(
            guesses((0..9).map(|host| format!("2001:db8:1:2::{host:x}")), 100).await,
            60,
            "a /64"
        );
        assert_eq!(
            guesses((0..9).map(|net| format!("2001:db8:1:20{net:x}::1")), 100).await,
            240,
            "a /56"
        );
        assert_eq!(
            guesses((0..30).map(|net| format!("2001:db8:1:{net:x}00::1")), 100).await,
            960,
            "a /48"
        );
        assert_eq!(guesses((0..3).map(|net| format!("2001:db8:{net:x}::1")), 100).await, 180);
    }

    #[tokio::test]
    async fn one_account_gets_ten_guesses_from_each_address() {
        let limits = |ip| login_limits("ada", &from(ip));
        let account = |ip| limits(ip).pop().unwrap();
        assert_eq!(account("203.0.113.7").0, LOGINS_PER_ACCOUNT_AND_ADDRESS);
        assert_ne!(account("203.0.113.7").1, account("203.0.113.8").1);
        assert_eq!(
            account("2001:db8:1:2::7").1,
            account("2001:db8:1:2:8::").1,
            "a /64 is one address"
        );
    }
}
