//! Measuring a guest: for benchmarks, not for users of VMs.

use std::time::Duration;

use async_trait::async_trait;

use super::GuestError;

/// Measures the channel and the guest behind it.
#[async_trait]
pub trait GuestMeasure: Send + Sync {
    /// Measures the channel itself: sends `to_guest` bytes that the agent throws away, then receives `from_guest`
    /// bytes that it makes up; returns the two times.
    async fn measure_channel(
        &self,
        to_guest: u64,
        from_guest: u64,
    ) -> Result<(Duration, Duration), GuestError>;

    /// Measures, inside the guest and by the agent's clock, `rounds` times fork + exec + wait of `/bin/true` (or the
    /// given program).
    async fn measure_spawn(&self, program: &str, rounds: u32) -> Result<Vec<Duration>, GuestError>;
}
