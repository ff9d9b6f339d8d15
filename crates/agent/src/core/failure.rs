//! Failures as they are reported to the host.

use std::io::{self, ErrorKind};

use microvm_protocol::messages::FailureKind;
use microvm_protocol::mux::StreamError;

/// Failure of an operation: a class for programs, a text for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct AgentError {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

pub(crate) type AgentResult<T> = Result<T, AgentError>;

impl AgentError {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(FailureKind::NotFound, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Unsupported, message)
    }

    /// An input or output error during `action` (for example "connect to port 80"), classified by its portable kind. A
    /// platform has a finer constructor of its own, which knows its error numbers.
    pub(crate) fn io(action: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::new(portable_kind(error.kind()), format!("{action}: {error}"))
    }
}

/// Class of an error that the standard library knows by name.
fn portable_kind(kind: ErrorKind) -> FailureKind {
    match kind {
        ErrorKind::NotFound => FailureKind::NotFound,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FailureKind::Forbidden,
        ErrorKind::AlreadyExists
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::ResourceBusy
        | ErrorKind::ExecutableFileBusy => FailureKind::Conflict,
        ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::OutOfMemory
        | ErrorKind::WouldBlock => FailureKind::Exhausted,
        ErrorKind::InvalidInput | ErrorKind::NotADirectory | ErrorKind::IsADirectory => FailureKind::Invalid,
        ErrorKind::Unsupported => FailureKind::Unsupported,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::HostUnreachable => {
            FailureKind::Unavailable
        }
        ErrorKind::TimedOut => FailureKind::Timeout,
        _ => FailureKind::Internal,
    }
}

impl From<StreamError> for AgentError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(failure) => Self::new(failure.kind(), failure.message),
            StreamError::Closed(reason) => Self::new(FailureKind::Cancelled, reason),
            StreamError::Body => Self::invalid("a message cannot be read"),
        }
    }
}

/// A path for messages: quoted, at most 300 characters, invalid UTF-8 replaced.
pub(crate) fn show(path: &[u8]) -> String {
    // Bounded: messages of errors travel in one frame.
    let text: String = String::from_utf8_lossy(path).chars().take(300).collect();
    format!("`{text}`")
}
