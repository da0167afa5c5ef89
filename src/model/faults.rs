//! Deliberate faults, for tests that must detect a faulty server. Without the feature `faults`,
//! which no release has, this module does nothing.
//!
//! `STARLING_MUTANT=no_gap_fill` gives the process one defect ([`Mutant`]).
//! `STARLING_FAILPOINTS=committed=crash/200` lets it crash, panic or wait at a [`Point`], about
//! once in 200 times: `point=crash/N`, `point=panic/N` or `point=wait:MS/N`, comma-separated.

macro_rules! named {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$doc:meta])+ $variant:ident = $word:literal),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])+ $variant),+ }

        impl $name {
            /// All variants.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name of the variant in the environment variable.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

named! {
    /// The defects.
    Mutant {
        /// Acknowledges some messages without a commit.
        AckBeforeCommit = "ack_before_commit",
        /// Assigns positions in a chat before the commit, as a sequence does.
        SequenceOrder = "sequence_order",
        /// Does not read from the store the events that the bus lost.
        NoGapFill = "no_gap_fill",
        /// Subscribes to a chat after, not before, the read of the client's missed changes.
        SubscribeAfterFetch = "subscribe_after_fetch",
        /// Drops events that arrive during a sync.
        NoHold = "no_hold",
        /// Continues to deliver to members who left.
        CachedMembership = "cached_membership",
        /// Delivers events in the order of their arrival, not of their revisions.
        ArrivalOrder = "arrival_order",
        /// Ignores `client_id`.
        DedupeForgotten = "dedupe_forgotten",
        /// Receives its own events twice, and delivers them twice.
        DeliverTwice = "seen_again",
        /// Delivers the events of a heal in reverse order.
        HealBackwards = "heal_backwards",
        /// Neither subscribes again nor resyncs after its bus connection was cut.
        NoResubscribe = "no_resubscribe",
        /// Does not resync when another replica dies.
        NoResyncOnDeath = "no_look_on_death",
        /// Leaves the connections of an ended session open.
        RevokeWithoutClosing = "revoke_without_closing",
        /// Caches resolved tokens for long and never removes one.
        StaleSessions = "stale_sessions",
        /// Keeps the users of a dead replica online.
        DeadReplicasStayOnline = "ghosts_never_expire",
        /// Does not bound the outbox of a slow consumer.
        UnboundedOutbox = "unbounded_outbox",
        /// Drops events for a slow consumer, and does not close its connection.
        DropOnOverflow = "drop_on_overflow",
    }
}

named! {
    /// The points at which the process can crash, panic or wait.
    Point {
        /// Before the commit of a batch of messages.
        Committing = "committing",
        /// After the commit of the batch, before its events are published.
        Committed = "committed",
        /// After the events of the batch are published, before its senders get their answers.
        Announced = "announced",
        /// After a connection subscribed to the client's chats, before it reads them.
        Followed = "followed",
        /// After the chats are read, before the client gets any of them.
        SnapshotRead = "snapshot_read",
        /// After the database resolved a token, before the cache stores its session.
        Resolved = "resolved",
        /// After a session ended in the database, before its event is published.
        SessionEnded = "session_ended",
    }
}

/// Whether the process has this defect.
#[cfg(not(feature = "faults"))]
pub const fn on(_mutant: Mutant) -> bool {
    false
}

/// `wrong` if the process has this defect, else `right`.
pub fn choose<T>(mutant: Mutant, right: T, wrong: T) -> T {
    if on(mutant) { wrong } else { right }
}

/// Does `$wrong` if the process has the defect `$mutant`. Compiles to nothing without the feature
/// `faults`.
macro_rules! mutant {
    ($mutant:ident => $wrong:expr) => {
        #[cfg(feature = "faults")]
        if $crate::model::faults::on($crate::model::faults::Mutant::$mutant) {
            $wrong
        }
    };
}
pub(crate) use mutant;

/// Reaches a point. Does nothing in this build.
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

    /// Whether the process has this defect.
    pub fn on(mutant: Mutant) -> bool {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        let choose = || {
            let word = variable("STARLING_MUTANT")?;
            Mutant::ALL.iter().copied().find(|mutant| mutant.word() == word)
        };
        *CHOSEN.get_or_init(choose) == Some(mutant)
    }

    /// Reaches a point: crashes, panics or waits there as `STARLING_FAILPOINTS` demands.
    ///
    /// # Panics
    /// If the variable demands it for this point.
    #[expect(clippy::panic, reason = "a failpoint that panics is one of its functions")]
    pub async fn at(point: Point) {
        static CHOSEN: OnceLock<Vec<(Point, Act, u32)>> = OnceLock::new();
        let chosen =
            CHOSEN.get_or_init(|| read(&variable("STARLING_FAILPOINTS").unwrap_or_default()));

        for (_, act, one_in) in chosen.iter().filter(|(chosen, ..)| *chosen == point) {
            if rand::rng().random_range(0..*one_in) == 0 {
                match act {
                    // Like SIGKILL: the process does not clean up.
                    Act::Crash => std::process::abort(),
                    Act::Panic => panic!("a failpoint"),
                    Act::Wait(span) => tokio::time::sleep(*span).await,
                }
            }
        }
    }

    fn read(failpoints: &str) -> Vec<(Point, Act, u32)> {
        let parse = |failpoint: &str| {
            let (name, act) = failpoint.trim().split_once('=')?;
            let point = Point::ALL.iter().copied().find(|point| point.word() == name)?;

            let (act, one_in) = act.split_once('/').unwrap_or((act, "1"));
            let act = match act.split_once(':') {
                Some(("wait", ms)) => Act::Wait(Duration::from_millis(ms.parse().ok()?)),
                _ if act == "panic" => Act::Panic,
                _ => Act::Crash,
            };
            Some((point, act, one_in.parse().ok().filter(|one_in| *one_in > 0)?))
        };
        failpoints.split(',').filter_map(parse).collect()
    }
}
