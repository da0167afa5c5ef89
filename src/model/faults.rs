//! Deliberate faults, for tests that must fail when the server is wrong. Without the feature
//! `faults`, which no release has, all of this is nothing.
//!
//! `STARLING_MUTANT=no_gap_fill` makes the process wrong in one way ([`Mutant`]).
//! `STARLING_FAILPOINTS=committed=crash/200` makes it crash, panic or wait at a [`Point`], about
//! once in 200 times: `point=crash/N`, `point=panic/N` or `point=wait:MS/N`, comma-separated.

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])+ $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])+ $variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in the environment.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

named! {
    /// The ways to be wrong.
    Mutant {
        /// Acknowledges some messages that it does not commit.
        AckBeforeCommit = "ack_before_commit",
        /// Gives places in a chat before the commit that fills them, as a sequence does.
        SequenceOrder = "sequence_order",
        /// Does not fetch what the bus lost.
        NoGapFill = "no_gap_fill",
        /// Follows a chat after it read what the client missed.
        SubscribeAfterFetch = "subscribe_after_fetch",
        /// Drops what happens during a sync.
        NoHold = "no_hold",
        /// Goes on telling who left.
        CachedMembership = "cached_membership",
        /// Delivers events as they arrive, whatever their revision.
        ArrivalOrder = "arrival_order",
        /// Forgets `client_id`.
        DedupeForgotten = "dedupe_forgotten",
        /// Hears its own events twice, and delivers what it delivered before.
        SeenAgain = "seen_again",
        /// Delivers what it fetched in the wrong order.
        HealBackwards = "heal_backwards",
        /// Subscribes to nothing after it was cut off, and does not look.
        NoResubscribe = "no_resubscribe",
        /// Does not look when another replica dies.
        NoLookOnDeath = "no_look_on_death",
        /// Leaves the sockets of an ended session open.
        RevokeWithoutClosing = "revoke_without_closing",
        /// Remembers tokens for long and never forgets one.
        StaleSessions = "stale_sessions",
        /// Keeps the users of a dead replica online.
        GhostsNeverExpire = "ghosts_never_expire",
        /// Lets what waits for a slow client grow.
        UnboundedOutbox = "unbounded_outbox",
        /// Drops what a slow client does not take.
        DropOnOverflow = "drop_on_overflow",
    }
}

named! {
    /// The steps between which something may go wrong.
    Point {
        /// A batch of messages is about to be committed.
        Committing = "committing",
        /// It was committed, and nobody heard of it.
        Committed = "committed",
        /// The hubs were told of it, its senders were not.
        Announced = "announced",
        /// A client's chats are followed, and not yet read.
        Followed = "followed",
        /// They are read, and the client was told nothing.
        SnapshotRead = "snapshot_read",
        /// The database said who a token stands for, and the cache was not told.
        Resolved = "resolved",
        /// A session ended, and nobody heard of it.
        SessionEnded = "session_ended",
    }
}

/// Whether the process is wrong in this way.
#[cfg(not(feature = "faults"))]
pub const fn on(_mutant: Mutant) -> bool {
    false
}

/// Comes by a step.
#[cfg(not(feature = "faults"))]
#[expect(clippy::unused_async, reason = "with the feature it waits")]
pub async fn at(_point: Point) {}

#[cfg(feature = "faults")]
pub use enabled::{at, on};

#[cfg(feature = "faults")]
mod enabled {
    use std::sync::OnceLock;
    use std::time::Duration;

    use rand::RngExt;

    use super::{Mutant, Point};

    #[derive(Clone, Copy)]
    enum Act {
        Crash,
        Panic,
        Wait(Duration),
    }

    fn variable(name: &str) -> Option<String> {
        std::env::vars().find_map(|(key, value)| (key == name).then_some(value))
    }

    /// Whether the process is wrong in this way.
    pub fn on(mutant: Mutant) -> bool {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        let choose = || {
            let word = variable("STARLING_MUTANT")?;
            Mutant::ALL.iter().copied().find(|mutant| mutant.word() == word)
        };
        *CHOSEN.get_or_init(choose) == Some(mutant)
    }

    /// Comes by a step.
    ///
    /// # Panics
    /// If it was told to.
    #[expect(clippy::panic, reason = "that is what is asked for")]
    pub async fn at(point: Point) {
        static CHOSEN: OnceLock<Vec<(Point, Act, u32)>> = OnceLock::new();
        let chosen =
            CHOSEN.get_or_init(|| read(&variable("STARLING_FAILPOINTS").unwrap_or_default()));
        for (_, act, one_in) in chosen.iter().filter(|(chosen, ..)| *chosen == point) {
            if rand::rng().random_range(0..*one_in) == 0 {
                match act {
                    // As SIGKILL would: nothing is cleaned up.
                    Act::Crash => std::process::abort(),
                    Act::Panic => panic!("a failpoint"),
                    Act::Wait(span) => tokio::time::sleep(*span).await,
                }
            }
        }
    }

    fn read(words: &str) -> Vec<(Point, Act, u32)> {
        let one = |word: &str| {
            let (name, act) = word.trim().split_once('=')?;
            let point = Point::ALL.iter().copied().find(|point| point.word() == name)?;
            let (act, one_in) = act.split_once('/').unwrap_or((act, "1"));
            let act = match act.split_once(':') {
                Some(("wait", ms)) => Act::Wait(Duration::from_millis(ms.parse().ok()?)),
                _ if act == "panic" => Act::Panic,
                _ => Act::Crash,
            };
            Some((point, act, one_in.parse().ok().filter(|one_in| *one_in > 0)?))
        };
        words.split(',').filter_map(one).collect()
    }
}
