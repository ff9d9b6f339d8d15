//! Failures as the host is told them.

use microvm_protocol::messages::FailureKind;
use microvm_protocol::mux::StreamError;
use rustix::io::Errno;

/// Why an operation failed: a class for programs, words for people.
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

    /// A failed system call while `action` (for example "open /etc/x").
    pub(crate) fn system(action: impl std::fmt::Display, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::NXIO | Errno::NODEV) => FailureKind::NotFound,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => FailureKind::Forbidden,
            Some(Errno::EXIST | Errno::NOTEMPTY | Errno::BUSY | Errno::TXTBSY) => FailureKind::Conflict,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => {
                FailureKind::Exhausted
            }
            Some(
                Errno::NOTDIR
                | Errno::ISDIR
                | Errno::INVAL
                | Errno::NAMETOOLONG
                | Errno::LOOP
                | Errno::XDEV
                | Errno::FBIG
                | Errno::TOOBIG
                | Errno::NOEXEC,
            ) => FailureKind::Invalid,
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => FailureKind::Unsupported,
            Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH) => FailureKind::Unavailable,
            _ => FailureKind::Internal,
        };
        Self::new(kind, format!("{action}: {error}"))
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

/// A path for messages: lossy, quoted, short.
pub(crate) fn show(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(300).collect();
    format!("`{text}`")
}
