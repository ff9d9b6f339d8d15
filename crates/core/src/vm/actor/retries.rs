//! When something that does not last is tried again: at once, then after 1, 2, 4 … 30 s.

use std::time::Duration;

use tokio::time::Instant;

/// Longest rest between two tries.
const MOST_REST: Duration = Duration::from_secs(30);
/// What held for so long was good: the next loss is a new one, tried at once.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// The tries of one thing, and when the next one is due.
#[derive(Debug, Default)]
pub(super) struct Retries {
    tries: u32,
    next: Option<Instant>,
    holds_since: Option<Instant>,
}

impl Retries {
    /// Ends when the next try is due; never if none is planned.
    pub(super) fn due(&self) -> impl Future<Output = ()> + Send + use<> {
        let next = self.next;
        async move {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Plans a try after a loss, and returns the rest before it.
    pub(super) fn lost(&mut self) -> Duration {
        if self.holds_since.take().is_none_or(|since| since.elapsed() >= GOOD_AFTER) {
            self.tries = 0;
        }
        self.plan()
    }

    /// Plans the next try, and returns the rest before it.
    pub(super) fn plan(&mut self) -> Duration {
        let rest = match self.tries {
            0 => Duration::ZERO,
            tries => Duration::from_secs(1 << (tries - 1).min(5)).min(MOST_REST),
        };
        self.tries = self.tries.saturating_add(1);
        self.next = Some(Instant::now() + rest);
        rest
    }

    /// No try is due any more.
    pub(super) fn cancel(&mut self) {
        self.next = None;
    }

    /// It holds from now on.
    pub(super) fn holds(&mut self) {
        self.cancel();
        self.holds_since = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_to_a_most_and_begin_anew_after_a_good_time() {
        let mut retries = Retries::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            rests.push(retries.lost().as_secs());
            retries.holds();
        }
        assert_eq!(rests, [0, 1, 2, 4, 8, 16, 30, 30]);
        retries.holds_since = Instant::now().checked_sub(GOOD_AFTER);
        assert_eq!(retries.lost(), Duration::ZERO);
    }
}
