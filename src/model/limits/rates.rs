//! How often something may be done: a burst at once, then one each pause.

use std::time::Duration;

use crate::model::Timestamp;

/// A rate: `burst` at once, then one each `every` (GCRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The name of the rate in keys and metrics.
    pub name: &'static str,
    /// How many at once.
    pub burst: u32,
    /// The pause that earns one more.
    pub every: Duration,
    /// What a replica allows that counts alone, because Redis is away.
    pub alone: Alone,
}

/// How a replica counts alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// As ever: that people can write to each other is worth more than the exact limit.
    AsEver,
    /// A quarter, and at most five at once: guesses must not become cheaper by taking Redis away.
    Strict,
    /// A quarter: for what many share, so that five failures of one do not hold up the others.
    Quarter,
}

impl Rate {
    /// The rate of a replica that counts alone.
    #[must_use]
    pub fn alone(self) -> Self {
        match self.alone {
            Alone::AsEver => self,
            Alone::Strict => {
                Self { burst: (self.burst / 4).clamp(1, 5), every: self.every * 4, ..self }
            }
            Alone::Quarter => {
                Self { burst: (self.burst / 4).max(1), every: self.every * 4, ..self }
            }
        }
    }
}

/// One counter under a [`Rate`]: a leaky bucket that remembers only when it will be full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at_ms: i64,
}

impl Bucket {
    /// Takes one, or says in how many milliseconds one will be free.
    ///
    /// # Errors
    /// The time to wait, in milliseconds.
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

    /// When it will be full again.
    pub fn full_at(&self) -> Timestamp {
        Timestamp::from_ms(self.full_at_ms)
    }

    /// Gives back what was taken when the bucket was to be full again at `full_at`: as if it had
    /// never been taken, except for what time has earned back since, which would otherwise be
    /// granted twice.
    pub fn give_back(&mut self, rate: Rate, full_at: Timestamp, now: Timestamp) {
        let every = i64::try_from(rate.every.as_millis()).unwrap_or(i64::MAX);
        let unearned = full_at.as_ms().saturating_sub(now.as_ms());
        self.full_at_ms = self.full_at_ms.saturating_sub(unearned.clamp(0, every));
    }

    /// Whether it is as if nothing had ever been taken.
    pub fn is_full(&self, now: Timestamp) -> bool {
        self.full_at_ms <= now.as_ms()
    }
}

/// Sends, edits and removals of a user: faster than anyone types, slow enough for readers.
pub const SENDS: Rate =
    Rate { name: "sends", burst: 60, every: Duration::from_millis(50), alone: Alone::AsEver };
/// Other changes by a user: chats, members, invites, the account.
pub const CHANGES: Rate =
    Rate { name: "changes", burst: 60, every: Duration::from_millis(200), alone: Alone::AsEver };
/// Failed logins to one account from one address (a /64 of IPv6): ten guesses, then one in ten
/// seconds. No other address uses them up.
pub const LOGINS_PER_ACCOUNT_AND_ADDRESS: Rate = Rate {
    name: "logins_per_account_and_address",
    burst: 10,
    every: Duration::from_secs(10),
    alone: Alone::Strict,
};
/// Failed logins to one account from everywhere, against guesses from many addresses: fifty, then
/// one in ten seconds, less than NIST SP 800-63B allows in a row. It does not hold back a device or
/// network that the account is logged in from.
pub const LOGINS_PER_ACCOUNT: Rate = Rate {
    name: "logins_per_account",
    burst: 50,
    every: Duration::from_secs(10),
    alone: Alone::Strict,
};
/// Failed logins from one address (a /64 of IPv6): an office behind one router.
pub const LOGINS_PER_ADDRESS: Rate = Rate {
    name: "logins_per_address",
    burst: 60,
    every: Duration::from_secs(1),
    alone: Alone::Strict,
};
/// Failed logins from a /56 of IPv6, which many providers give one customer: four times those of a
/// /64.
pub const LOGINS_PER_NETWORK_56: Rate = Rate {
    name: "logins_per_network_56",
    burst: 240,
    every: Duration::from_millis(250),
    alone: Alone::Quarter,
};
/// Failed logins from a /48 of IPv6, which an organisation gets: sixteen times those of a /64.
pub const LOGINS_PER_NETWORK_48: Rate = Rate {
    name: "logins_per_network_48",
    burst: 960,
    every: Duration::from_millis(62),
    alone: Alone::Quarter,
};
/// Wrong passwords with which a session tried to change or remove its account. Each session counts
/// for itself, so that a stolen one can't keep the account's owner from changing the password.
pub const CONFIRMATIONS_PER_SESSION: Rate = Rate {
    name: "confirmations_per_session",
    burst: 10,
    every: Duration::from_secs(10),
    alone: Alone::Strict,
};
/// Registrations from one address.
pub const REGISTRATIONS_PER_ADDRESS: Rate = Rate {
    name: "registrations_per_address",
    burst: 30,
    every: Duration::from_secs(10),
    alone: Alone::Strict,
};
/// Look-ups of invites from one address: nobody guesses a code of 128 bits, and nobody shall try.
pub const INVITE_LOOKUPS_PER_ADDRESS: Rate = Rate {
    name: "invite_lookups_per_address",
    burst: 60,
    every: Duration::from_secs(1),
    alone: Alone::Strict,
};
/// Refresh tokens from one address that are unknown. They are looked up whatever their number,
/// since nobody guesses 256 bits: beyond this, the answer is `429`, and known tokens from the same
/// address are still refreshed.
pub const REFRESHES_PER_ADDRESS: Rate = Rate {
    name: "refreshes_per_address",
    burst: 120,
    every: Duration::from_millis(500),
    alone: Alone::Strict,
};
/// Refreshes of one session: a client needs one a day, or one more after each lost answer.
pub const REFRESHES_PER_SESSION: Rate = Rate {
    name: "refreshes_per_session",
    burst: 30,
    every: Duration::from_secs(2),
    alone: Alone::AsEver,
};
/// Frames of one connection.
pub const FRAMES: Rate =
    Rate { name: "frames", burst: 300, every: Duration::from_millis(10), alone: Alone::AsEver };
/// `watch_presence` of a user: a few devices that come back at once, each with what it shows.
pub const WATCHES: Rate =
    Rate { name: "watches", burst: 60, every: Duration::from_millis(200), alone: Alone::AsEver };
/// Reads of a user on one replica: every GET, read markers, and `typing` that is not a repetition.
/// A client that comes back to a thousand chats reads a screenful of them at once, and the rest as
/// its user scrolls.
pub const READS: Rate =
    Rate { name: "reads", burst: 300, every: Duration::from_millis(20), alone: Alone::AsEver };
/// Connections and `sync`s of a user on one replica: all devices that a user may connect come back
/// three times at once.
pub const ARRIVALS: Rate =
    Rate { name: "arrivals", burst: 120, every: Duration::from_millis(250), alone: Alone::AsEver };
/// `typing` of a user in one chat that is passed on. From the protocol.
pub const TYPING: Rate =
    Rate { name: "typing", burst: 1, every: Duration::from_secs(2), alone: Alone::AsEver };
