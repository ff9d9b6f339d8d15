//! Instants as text: RFC 3339 with an offset, in one configured zone; never naive.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Zone used when nothing else is configured (a compliance requirement of this product).
pub const DEFAULT_ZONE: &str = "America/New_York";

/// A zone that is not in the time zone database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time zone: write one of the IANA database, for example {DEFAULT_ZONE}")]
pub struct ZoneError(pub String);

/// Writes instants in one zone.
#[derive(Debug, Clone)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of this IANA name.
    ///
    /// # Errors
    /// [`ZoneError`] if there is none.
    pub fn named(name: &str) -> Result<Self, ZoneError> {
        TimeZone::get(name).map(Self).map_err(|_| ZoneError(name.to_owned()))
    }

    /// An instant, milliseconds since 1970-01-01T00:00:00Z, as RFC 3339 with milliseconds and offset. Instants beyond
    /// what a calendar can hold are shown as its end.
    #[must_use]
    pub fn format(&self, milliseconds: i64) -> String {
        let instant = Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX);
        instant.to_zoned(self.0.clone()).strftime("%Y-%m-%dT%H:%M:%S.%3f%:z").to_string()
    }
}

/// Reads an RFC 3339 text back to milliseconds since 1970-01-01T00:00:00Z; `None` if it is not one.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn carries_the_offset_of_its_season() {
        let zone = Zone::named(DEFAULT_ZONE).unwrap();
        assert_eq!(zone.format(1_767_225_600_000), "2025-12-31T19:00:00.000-05:00");
        assert_eq!(zone.format(1_783_000_000_123), "2026-07-02T09:46:40.123-04:00");
        assert!(Zone::named("Mars/Olympus").is_err());
    }

    proptest! {
        #[test]
        fn comes_back(milliseconds in 0i64..4_102_444_800_000) {
            let zone = Zone::named(DEFAULT_ZONE).unwrap();
            prop_assert_eq!(parse(&zone.format(milliseconds)), Some(milliseconds));
        }
    }
}
