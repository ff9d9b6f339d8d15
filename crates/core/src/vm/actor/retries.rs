//! Plan of new tries of something that does not last: at once, then after 1, 2, 4 … 30 s.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::Clock;
use tokio::time::Instant;

/// Longest rest between two tries.
const MOST_REST: Duration = Duration::from_secs(30);
/// A loss after it held for this time is a new one, tried again at once.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// The tries of one thing, and when the next one is due.
pub(super) struct Retries {
    clock: Arc<dyn Clock>,
    tries: u32,
    next: Option<Instant>,
    holds_since: Option<Instant>,
}

impl Retries {
    pub(super) fn new(clock: &Arc<dyn Clock>) -> Self {
        Self { clock: Arc::clone(clock), tries: 0, next: None, holds_since: None }
    }

    /// Ends when the next try is due; never if none is planned.
    pub(super) fn due(&self) -> impl Future<Output = ()> + Send + use<> {
        let (clock, next) = (Arc::clone(&self.clock), self.next);
        async move {
            match next {
                Some(next) => clock.sleep_until(next).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Plans a try after a loss, and returns the rest before it.
    pub(super) fn lost(&mut self) -> Duration {
        let now = self.clock.steady();
        let is_good = |since| now.saturating_duration_since(since) >= GOOD_AFTER;
        if self.holds_since.take().is_none_or(is_good) {
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
        // A VM that is unreachable for years must not begin to retry at once again.
        self.tries = self.tries.saturating_add(1);
        self.next = Some(self.clock.steady() + rest);
        rest
    }

    /// No try is due any more.
    pub(super) fn cancel(&mut self) {
        self.next = None;
    }

    /// It holds from now on.
    pub(super) fn holds(&mut self) {
        self.cancel();
        self.holds_since = Some(self.clock.steady());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use microvm_driver_fake::FrozenClock;

    use super::*;

    #[test]
    fn rests_grow_to_a_most_and_begin_anew_after_a_good_time() {
        let clock = Arc::new(FrozenClock::default());
        let mut retries = Retries::new(&(Arc::clone(&clock) as _));
        let mut rests = Vec::new();
        for _ in 0..8 {
            rests.push(retries.lost().as_secs());
            retries.holds();
        }
        assert_eq!(rests, [0, 1, 2, 4, 8, 16, 30, 30]);
        clock.advance(60_000);
        assert_eq!(retries.lost(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_try_is_due_when_the_clock_says_so() {
        let clock = Arc::new(FrozenClock::default());
        let mut retries = Retries::new(&(Arc::clone(&clock) as _));
        for _ in 0..7 {
            retries.plan();
        }
        let due = retries.due();
        assert_eq!(due.now_or_never(), None, "30 s have not passed");
        clock.advance(30_000);
        retries.due().now_or_never().expect("they have passed now");
        retries.cancel();
        assert_eq!(retries.due().now_or_never(), None);
    }
}
