//! Time and chance, so that tests can freeze both.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

/// Source of time and random numbers. Whatever is done later or again goes by it; limits of single requests (a driver that does
/// not answer) go by the runtime's timer.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Wall clock in milliseconds since 1970-01-01T00:00:00Z.
    fn now_ms(&self) -> i64;

    /// The present moment of a clock that is never set back. Moments of one clock can be compared with each other only.
    fn steady(&self) -> Instant {
        Instant::now()
    }

    /// Ends when [`Self::steady`] reaches `moment`, as [`Self::sleep`] does. Cancelling is safe.
    async fn sleep_until(&self, moment: Instant) {
        self.sleep(moment.saturating_duration_since(self.steady())).await;
    }

    /// Ends when `duration` has passed; a clock that tests move ends it as soon as it was moved by as much. Cancelling is
    /// safe.
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Fills `bytes` with unpredictable bytes fit for keys.
    fn fill_random(&self, bytes: &mut [u8]);
}
