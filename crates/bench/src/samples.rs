//! Durations measured in rounds, and their percentiles.

use std::time::Duration;

use serde::Serialize;

/// Durations of one thing, the first round dropped.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<Duration>);

/// Percentiles in milliseconds, by nearest rank.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Number of rounds.
    pub count: usize,
}

impl Samples {
    /// From measured rounds; the first one, with cold caches, is dropped if there are others.
    pub(crate) fn new(mut rounds: Vec<Duration>) -> Self {
        if rounds.len() > 1 {
            rounds.remove(0);
        }
        Self(rounds)
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len().max(1));
            sorted.get(rank - 1).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
        };
        Percentiles { p50: at(50), p90: at(90), p99: at(99), count: sorted.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank_without_the_first_round() {
        let rounds = std::iter::once(1_000).chain(1..=100).map(Duration::from_millis).collect();
        let found = Samples::new(rounds).percentiles();
        assert_eq!((found.p50, found.p90, found.p99, found.count), (50.0, 90.0, 99.0, 100));
        let one = Samples::new(vec![Duration::from_millis(7)]).percentiles();
        assert_eq!((one.p50, one.p99, one.count), (7.0, 7.0, 1));
    }
}
