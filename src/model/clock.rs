//! The clock that every part gets as a parameter. Only this module reads the operating system's
//! clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time in UTC, in whole milliseconds since 1970. On the wire: RFC 3339 with milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time this many milliseconds after 1970 began.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// The time `span` later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time `span` earlier.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time between `self` and `other`, in either order.
    pub const fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1000))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
        let (hour, minute, second) = time.to_hms();
        let ms = self.0.rem_euclid(1000);

        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
        let ms = time.unix_timestamp_nanos() / 1_000_000;
        i64::try_from(ms).map(Self).map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
                utoipa::openapi::KnownFormat::DateTime,
            )))
            .description(Some("RFC 3339, UTC, milliseconds"))
            .examples(["2026-11-21T23:59:59.123Z"])
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

/// The clock of a replica. Clones share its state.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// How far the machine's clock is behind the clock of the database.
    skew_ms: Arc<AtomicI64>,
    /// How far tests moved this clock forward.
    advanced_ms: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that shows the operating system's time.
    pub fn system() -> Self {
        Self::default()
    }

    /// The current time in UTC.
    pub fn now(&self) -> Timestamp {
        let offset = self.skew_ms.load(Ordering::Relaxed).saturating_add(self.advanced_ms());
        Timestamp(Self::of_the_machine().saturating_add(offset))
    }

    /// Moves this clock and its clones forward by `span`.
    pub fn advance(&self, span: Duration) {
        self.advanced_ms
            .fetch_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How far [`Clock::advance`] moved this clock, in milliseconds: 0 except in tests.
    pub fn advanced_ms(&self) -> i64 {
        self.advanced_ms.load(Ordering::Relaxed)
    }

    /// Sets this clock to `theirs`, the present time of another clock. All replicas follow the
    /// database, so that tokens expire on all of them at the same time.
    pub fn follow(&self, theirs: Timestamp) {
        self.skew_ms.store(theirs.0 - Self::of_the_machine(), Ordering::Relaxed);
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    fn of_the_machine() -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_rfc_3339_with_milliseconds_and_read_back() {
        let moment = Timestamp::from_ms(1_795_305_599_123);
        assert_eq!(moment.to_string(), "2026-11-21T23:59:59.123Z");
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), moment);
    }
}
