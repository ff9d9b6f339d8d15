//! Time and chance, so that tests can freeze both.

use std::time::Duration;

use async_trait::async_trait;

/// Source of time and random numbers.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Wall clock in milliseconds since 1970-01-01T00:00:00Z.
    fn now_ms(&self) -> i64;

    /// Ends when `duration` has passed; a clock that tests move ends it as soon as it was moved by as much. Cancelling is
    /// safe.
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Fills `bytes` with unpredictable bytes fit for keys.
    fn fill_random(&self, bytes: &mut [u8]);
}
