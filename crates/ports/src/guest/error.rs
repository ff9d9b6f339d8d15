//! Failures of a guest, and ends of its channel.

use std::time::Duration;

use microvm_types::ErrorKind;

/// Failure of a request to a guest, or of reaching it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The agent did what was asked of it and failed: no such file, no such user …
    #[error("{message}")]
    Refused {
        /// The class of the failure as the agent gave it.
        kind: ErrorKind,
        /// Message of the agent, limited in length and cleaned of control characters.
        message: String,
    },
    /// The channel is closed; nothing more will come from this guest in this epoch.
    #[error("the channel to the guest is closed: {0}")]
    Closed(CloseReason),
    /// The guest did not answer in time.
    #[error("the guest did not {action} within {after:?}")]
    Timeout {
        /// Action that was asked of it.
        action: &'static str,
        /// Time that was waited.
        after: Duration,
    },
    /// The guest broke the rules of the protocol; the channel is closed with it.
    #[error("the guest broke the channel protocol: {0}")]
    Protocol(String),
    /// The caller's own data stream failed in the middle of a transfer; the guest keeps nothing of it.
    #[error("the data to send could not be read: {0}")]
    Source(String),
    /// The channel's socket could not be reached.
    #[error("the channel of the guest cannot be reached: {0}")]
    Unreachable(String),
}

impl GuestError {
    /// This failure as that of the caller's own data, of which it is a part.
    #[must_use]
    pub fn of_source(self) -> Self {
        match self {
            Self::Source(detail) => Self::Source(detail),
            other => Self::Source(other.to_string()),
        }
    }

    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Closed(_) | Self::Unreachable(_) => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Protocol(_) => ErrorKind::Internal,
            Self::Source(_) => ErrorKind::Invalid,
        }
    }
}

/// Reason for the end of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The machine or the guest closed it.
    EndOfStream,
    /// No heartbeat was answered for this long.
    HeartbeatLost(Duration),
    /// The guest broke the protocol.
    Protocol(String),
    /// This side closed it on purpose.
    Local,
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EndOfStream => formatter.write_str("the machine closed it"),
            Self::HeartbeatLost(after) => {
                write!(formatter, "the agent did not answer a heartbeat for {after:?}")
            }
            Self::Protocol(what) => write!(formatter, "the guest broke the protocol: {what}"),
            Self::Local => formatter.write_str("it was closed on request"),
        }
    }
}
