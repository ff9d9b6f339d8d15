//! Time and chance, so that tests can freeze both.

/// Where time and random numbers come from.
pub trait Clock: Send + Sync {
    /// Wall clock in milliseconds since 1970-01-01T00:00:00Z.
    fn now_ms(&self) -> i64;

    /// Fills `bytes` with unpredictable bytes fit for keys.
    fn fill_random(&self, bytes: &mut [u8]);
}
