//! Rate limits: a burst at once, then one permit after each pause.

use std::time::Duration;

use crate::model::Timestamp;

/// A rate limit: `burst` permits at once, then one permit per `every` (GCRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The name of the rate in keys and metrics.
    pub name: &'static str,
    /// Permits that are available at once.
    pub burst: u32,
    /// The pause after which one more permit is available.
    pub every: Duration,
    /// The rate of each replica while Redis is unavailable.
    pub without_redis: WithoutRedis,
}

/// How strictly each replica limits while Redis is unavailable and replicas count separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutRedis {
    /// The full rate on each replica. Availability for users matters more than the exact limit.
    Full,
    /// A quarter of the rate, with a burst of at most five. An attacker who disables Redis must not
    /// get more guesses.
    Strict,
    /// A quarter of the rate. For limits that many users share: with a burst of five, the failures
    /// of one user would block the others.
    Quarter,
}

impl Rate {
    /// The rate of one replica while Redis is unavailable.
    #[must_use]
    pub fn without_redis(self) -> Self {
        match self.without_redis {
            WithoutRedis::Full => self,
            WithoutRedis::Strict => {
                Self { burst: (self.burst / 4).clamp(1, 5), every: self.every * 4, ..self }
            }
            WithoutRedis::Quarter => {
                Self { burst: (self.burst / 4).max(1), every: self.every * 4, ..self }
            }
        }
    }
}

/// One counter of a [`Rate`]: a token bucket, stored as the time at which it is full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at_ms: i64,
}

impl Bucket {
    /// Takes one permit.
    ///
    /// # Errors
    /// The time until a permit is available, in milliseconds.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> Result<(), u64> {
        let every = i64::try_from(rate.every.as_millis()).unwrap_or(i64::MAX);
        let tolerance = every.saturating_mul(i64::from(rate.burst) - 1);
        let from = self.full_at_ms.max(now.as_ms());
        let over = from - now.as_ms() - tolerance;
        if over > 0 {
            return Err(u64::try_from(over).unwrap_or(0));
        }

        self.full_at_ms = from.saturating_add(every);
        Ok(())
    }

    /// The time at which the bucket is full again.
    pub fn full_at(&self) -> Timestamp {
        Timestamp::from_ms(self.full_at_ms)
    }

    /// Gives back one permit. `full_at` is the value of [`Bucket::full_at`] right after it was
    /// taken. The part of the permit that time has already restored is not given back, since it
    /// would count twice.
    pub fn give_back(&mut self, rate: Rate, full_at: Timestamp, now: Timestamp) {
        let every = i64::try_from(rate.every.as_millis()).unwrap_or(i64::MAX);
        let unearned = full_at.as_ms().saturating_sub(now.as_ms());
        self.full_at_ms = self.full_at_ms.saturating_sub(unearned.clamp(0, every));
    }

    /// Whether all permits are available, so that the bucket can be removed.
    pub fn is_full(&self, now: Timestamp) -> bool {
        self.full_at_ms <= now.as_ms()
    }
}

/// Sends, edits and removals of a user: faster than a person types, slow enough for readers.
pub const SENDS: Rate = Rate {
    name: "sends",
    burst: 60,
    every: Duration::from_millis(50),
    without_redis: WithoutRedis::Full,
};
/// Other changes by a user: chats, members, invites, the account.
pub const CHANGES: Rate = Rate {
    name: "changes",
    burst: 60,
    every: Duration::from_millis(200),
    without_redis: WithoutRedis::Full,
};
/// Failed logins to one account from one address (a /64 of IPv6): ten guesses, then one per ten
/// seconds. Failures from other addresses do not count.
pub const LOGINS_PER_ACCOUNT_AND_ADDRESS: Rate = Rate {
    name: "logins_per_account_and_address",
    burst: 10,
    every: Duration::from_secs(10),
    without_redis: WithoutRedis::Strict,
};
/// Failed logins to one account from all addresses, against guesses from many addresses: fifty,
/// then one per ten seconds. NIST SP 800-63B allows 100 failures in a row. The limit does not apply
/// to a device or network from which the account is logged in.
pub const LOGINS_PER_ACCOUNT: Rate = Rate {
    name: "logins_per_account",
    burst: 50,
    every: Duration::from_secs(10),
    without_redis: WithoutRedis::Strict,
};
/// Failed logins from one address (a /64 of IPv6). Enough for an office behind one router.
pub const LOGINS_PER_ADDRESS: Rate = Rate {
    name: "logins_per_address",
    burst: 60,
    every: Duration::from_secs(1),
    without_redis: WithoutRedis::Strict,
};
/// Failed logins from a /56 of IPv6, which many providers give one customer: four times the rate of
/// a /64.
pub const LOGINS_PER_NETWORK_56: Rate = Rate {
    name: "logins_per_network_56",
    burst: 240,
    every: Duration::from_millis(250),
    without_redis: WithoutRedis::Quarter,
};
/// Failed logins from a /48 of IPv6, which an organisation gets: sixteen times the rate of a /64.
pub const LOGINS_PER_NETWORK_48: Rate = Rate {
    name: "logins_per_network_48",
    burst: 960,
    every: Duration::from_millis(62),
    without_redis: WithoutRedis::Quarter,
};
/// Wrong passwords of a session that tries to change or remove its account. Each session is counted
/// separately, so that an attacker with a stolen session cannot block the owner's change of the
/// password.
pub const CONFIRMATIONS_PER_SESSION: Rate = Rate {
    name: "confirmations_per_session",
    burst: 10,
    every: Duration::from_secs(10),
    without_redis: WithoutRedis::Strict,
};
/// Registrations from one address.
pub const REGISTRATIONS_PER_ADDRESS: Rate = Rate {
    name: "registrations_per_address",
    burst: 30,
    every: Duration::from_secs(10),
    without_redis: WithoutRedis::Strict,
};
/// Look-ups of invites from one address. Bounds the load of attempts to guess a code; its 128 bits
/// cannot be guessed.
pub const INVITE_LOOKUPS_PER_ADDRESS: Rate = Rate {
    name: "invite_lookups_per_address",
    burst: 60,
    every: Duration::from_secs(1),
    without_redis: WithoutRedis::Strict,
};
/// Unknown refresh tokens from one address. Over it the answer is `429`, but the server still looks
/// up each token, so that known tokens from the same address still work. Their 256 bits cannot be
/// guessed.
pub const REFRESHES_PER_ADDRESS: Rate = Rate {
    name: "refreshes_per_address",
    burst: 120,
    every: Duration::from_millis(500),
    without_redis: WithoutRedis::Strict,
};
/// Refreshes of one session. A client needs one a day, and one more after each lost answer.
pub const REFRESHES_PER_SESSION: Rate = Rate {
    name: "refreshes_per_session",
    burst: 30,
    every: Duration::from_secs(2),
    without_redis: WithoutRedis::Full,
};
/// Frames of one connection.
pub const FRAMES: Rate = Rate {
    name: "frames",
    burst: 300,
    every: Duration::from_millis(10),
    without_redis: WithoutRedis::Full,
};
/// `watch_presence` frames of a user. Enough for several devices that reconnect at once.
pub const WATCHES: Rate = Rate {
    name: "watches",
    burst: 60,
    every: Duration::from_millis(200),
    without_redis: WithoutRedis::Full,
};
/// Reads of a user on one replica: every GET, read markers, and `typing` that is not a repetition.
/// A client that reconnects with a thousand chats reads one screen of them at once, and the others
/// as the user scrolls.
pub const READS: Rate = Rate {
    name: "reads",
    burst: 300,
    every: Duration::from_millis(20),
    without_redis: WithoutRedis::Full,
};
/// Connections and `sync` frames of a user on one replica. Enough for all devices of a user to
/// reconnect three times at once.
pub const ARRIVALS: Rate = Rate {
    name: "arrivals",
    burst: 120,
    every: Duration::from_millis(250),
    without_redis: WithoutRedis::Full,
};
/// `typing` frames of a user in one chat that reach the other members. Part of the protocol.
pub const TYPING: Rate = Rate {
    name: "typing",
    burst: 1,
    every: Duration::from_secs(2),
    without_redis: WithoutRedis::Full,
};
