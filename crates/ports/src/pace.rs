//! Patience with the other side of a long stream.

use std::time::Duration;

/// How long the other side of a stream, which takes its parts or sends them, may let this one wait: not without end for one part, and
/// for all of them together only as long as a slow line needs. Who stays below that keeps something from others for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Longest wait for one part.
    pub const SILENCE: Duration = Duration::from_mins(2);
    /// Bytes that have to move in each second of waiting, beyond a first [`Self::SILENCE`].
    pub const LEAST_RATE: u64 = 128 << 10;

    /// Longest wait for the next part; zero if the other side is too slow.
    #[must_use]
    pub fn left(&self) -> Duration {
        let allowed = Self::SILENCE.saturating_add(Duration::from_secs(self.bytes / Self::LEAST_RATE));
        allowed.saturating_sub(self.waited).min(Self::SILENCE)
    }

    /// Notes that a part moved after such a wait. Time in which the other side was not waited for does not count.
    pub fn note(&mut self, waited: Duration, bytes: u64) {
        self.waited = self.waited.saturating_add(waited);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lets_wait_for_a_little_all_the_time_is_too_slow_in_the_end() {
        let mut pace = Pace::default();
        assert_eq!(pace.left(), Pace::SILENCE);
        pace.note(Duration::from_secs(119), 256 << 10);
        assert_eq!(pace.left(), Duration::from_secs(3));
        pace.note(Duration::from_secs(3), 1);
        assert_eq!(pace.left(), Duration::ZERO);
        let mut pace = Pace::default();
        for _ in 0..100_000 {
            pace.note(Duration::from_secs(1), Pace::LEAST_RATE);
        }
        assert_eq!(pace.left(), Pace::SILENCE, "a slow line may take as long as it takes");
    }
}
