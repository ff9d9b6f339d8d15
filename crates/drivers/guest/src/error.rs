//! From the channel's failures to those of the port.

use microvm_ports::GuestError;
use microvm_ports::guest::CloseReason;
use microvm_protocol::messages::FailureKind;
use microvm_protocol::mux::{OpenError, StreamError};
use microvm_types::ErrorKind;

use crate::channel::Channel;
use crate::sanitize::clean;

pub(crate) const fn kind(kind: FailureKind) -> ErrorKind {
    match kind {
        FailureKind::Invalid => ErrorKind::Invalid,
        FailureKind::Forbidden => ErrorKind::Forbidden,
        FailureKind::NotFound => ErrorKind::NotFound,
        FailureKind::Conflict => ErrorKind::Conflict,
        FailureKind::Unsupported => ErrorKind::Unsupported,
        FailureKind::Exhausted => ErrorKind::Exhausted,
        FailureKind::Unavailable | FailureKind::Cancelled => ErrorKind::Unavailable,
        FailureKind::Timeout => ErrorKind::Timeout,
        FailureKind::Internal => ErrorKind::Internal,
    }
}

impl Channel {
    /// Error of a failed stream. A body that cannot be read ends the channel.
    pub(crate) fn stream_failed(&self, error: StreamError) -> GuestError {
        match error {
            StreamError::Reset(failure) => {
                GuestError::Refused { kind: kind(failure.kind()), message: clean(&failure.message) }
            }
            StreamError::Closed(_) => GuestError::Closed(self.close_reason()),
            StreamError::Body => self.broken("a message of the guest cannot be read"),
        }
    }

    /// Error of a stream that could not be opened.
    pub(crate) fn open_failed(&self, error: &OpenError) -> GuestError {
        let kind = match error {
            OpenError::Closed(_) => return GuestError::Closed(self.close_reason()),
            OpenError::TooMany => ErrorKind::Exhausted,
            OpenError::TooLong(_) | OpenError::Reserved => ErrorKind::Invalid,
        };
        GuestError::Refused { kind, message: error.to_string() }
    }

    /// The guest broke a rule: the channel is closed.
    pub(crate) fn broken(&self, what: &str) -> GuestError {
        self.close_with(CloseReason::Protocol(what.to_owned()));
        GuestError::Protocol(what.to_owned())
    }
}
