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
