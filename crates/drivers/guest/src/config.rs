//! Settings of the channel.

use std::time::Duration;

/// Times and limits of channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// A ping is sent after so much silence.
    pub heartbeat_interval: Duration,
    /// A guest that has sent nothing for so long, while this process ran, is lost.
    pub heartbeat_timeout: Duration,
    /// Longest wait for the answer to a short request.
    pub request_timeout: Duration,
}

impl GuestConfig {
    /// Longest wait for a list, and for the next step of a transfer: a guest may have to write to a slow disk first.
    pub(crate) const fn step_timeout(&self) -> Duration {
        self.request_timeout.saturating_mul(5)
    }

    /// Longest wait for work that grows with what is in the guest: hashing a file, removing a tree.
    pub(crate) const fn work_timeout(&self) -> Duration {
        self.request_timeout.saturating_mul(60)
    }
}

impl Default for GuestConfig {
    /// 5 s, 30 s, 60 s.
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
        }
    }
}
