//! The real clock and real randomness.

use std::time::{SystemTime, UNIX_EPOCH};

use microvm_ports::Clock;

/// The host's wall clock and the kernel's random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// # Panics
    /// If the kernel gives no random bytes, which it does only before its generator was ever seeded: nothing that is
    /// made then could be trusted.
    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes)
            .expect("the kernel's random number generator works on every host we can boot on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_past_2020_and_bytes_differ() {
        assert!(SystemClock.now_ms() > 1_577_836_800_000);
        let (mut a, mut b) = ([0; 32], [0; 32]);
        SystemClock.fill_random(&mut a);
        SystemClock.fill_random(&mut b);
        assert_ne!(a, b);
    }
}
