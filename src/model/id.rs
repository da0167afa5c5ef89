//! Identifiers as types of their own, so that a chat's id can't be passed where a user's belongs.

use rand::Rng;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;

macro_rules! uuids {
    ($($(#[$doc:meta])+ $name:ident),+ $(,)?) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new `UUIDv7` (RFC 9562): 48 bits of `now`, the rest from the random source.
            pub fn new(now: Timestamp, random: &mut impl Rng) -> Self {
                let mut bytes = [0; 10];
                random.fill_bytes(&mut bytes);
                let ms = u64::try_from(now.as_ms()).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

uuids! {
    /// An account.
    UserId,
    /// A login with its tokens.
    SessionId,
    /// A conversation of any kind.
    ChatId,
    /// A history of the log: the revisions of one can't be compared with those of another.
    Epoch,
    /// A request, to find it in the logs.
    RequestId,
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident),+ $(,)?) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub i64);

        impl $name {
            /// The one that follows.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

counters! {
    /// A message's position in its chat: 1, 2, 3, … without gaps; 0 stands for "before the first".
    MessageId,
    /// A chat's revision: it grows by exactly 1 with every durable change of the chat.
    Rev,
}
