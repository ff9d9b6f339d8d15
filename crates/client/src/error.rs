//! Failures on the way to the server and back.

use camino::Utf8PathBuf;
use microvm_api::Problem;
use microvm_types::{Action, ErrorKind};

/// Code of errors about files of this host.
pub const LOCAL_FILE: &str = "local_file";

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server listens on the socket.
    #[error("no server listens on {path} ({source})")]
    NoServer {
        /// The socket.
        path: Utf8PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The socket cannot be used at all.
    #[error(
        "the socket {path} cannot be used ({source}): look at its owner and permissions, or choose another root"
    )]
    Socket {
        /// The socket.
        path: Utf8PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The program that leads to the server cannot be started.
    #[error("`{program}`, which leads to the server, cannot be started: {source}")]
    Program {
        /// The program.
        program: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Somebody else listens on the socket; nothing was sent.
    #[error(
        "the server on {path} belongs to uid {uid}, who is neither you nor root: nothing was sent to it; choose another root with --root"
    )]
    ForeignServer {
        /// The socket.
        path: Utf8PathBuf,
        /// User id of its owner.
        uid: u32,
    },
    /// The server refused or failed, and said why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The connection broke.
    #[error(
        "the connection to the server was lost during `{action}` ({detail}): look at its log and try again"
    )]
    Lost {
        /// Name of the operation, or what was being done.
        action: &'static str,
        /// Cause, in words.
        detail: String,
    },
    /// The server answered something that this client does not understand.
    #[error(
        "the server's answer cannot be understood ({0}): client and server are probably of different versions"
    )]
    Answer(String),
    /// The bytes that arrived are not the bytes that were sent.
    #[error("the transfer was damaged: {sent} was sent and {received} arrived; try again")]
    Damaged {
        /// SHA-256 at the sender.
        sent: String,
        /// SHA-256 at the receiver.
        received: String,
    },
    /// A file of this host cannot be used, or a request makes no sense; nothing was asked of the server, or it succeeded.
    #[error("{0}")]
    Local(Box<Problem>),
    /// The caller's output could not be written.
    #[error("the output could not be written: {0}")]
    Output(std::io::Error),
    /// The caller's own data could not be read.
    #[error("the data to send could not be read: {0}")]
    Source(String),
}

impl ClientError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoServer { .. } | Self::Program { .. } | Self::Lost { .. } => ErrorKind::Unavailable,
            Self::Socket { .. } | Self::ForeignServer { .. } => ErrorKind::Forbidden,
            Self::Problem(problem) | Self::Local(problem) => problem.kind,
            Self::Answer(_) | Self::Damaged { .. } | Self::Output(_) => ErrorKind::Internal,
            Self::Source(_) => ErrorKind::Invalid,
        }
    }

    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::NoServer { .. } => "no_server",
            Self::Socket { .. } => "socket_unusable",
            Self::ForeignServer { .. } => "server_foreign",
            Self::Problem(problem) | Self::Local(problem) => &problem.code,
            Self::Program { .. } => "program_unusable",
            Self::Lost { .. } => "connection_lost",
            Self::Answer(_) => "answer_not_understood",
            Self::Damaged { .. } => "transfer_damaged",
            Self::Source(_) => "source_unreadable",
            Self::Output(_) => "output_unwritable",
        }
    }

    /// The failure as a problem body, whoever found it.
    #[must_use]
    pub fn to_problem(&self) -> Problem {
        match self {
            Self::Problem(problem) | Self::Local(problem) => (**problem).clone(),
            other => {
                let remedies = match other {
                    Self::NoServer { .. } => vec![Action::StartServer.any()],
                    _ => Vec::new(),
                };
                Problem::new(other.kind(), other.code(), other.to_string()).with_remedies(remedies)
            }
        }
    }

    /// Something that this side refuses or cannot do.
    #[must_use]
    pub fn refused(kind: ErrorKind, code: &str, detail: impl Into<String>) -> Self {
        Self::Local(Box::new(Problem::new(kind, code, detail)))
    }

    /// A request that makes no sense, found on this side.
    #[must_use]
    pub fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::refused(ErrorKind::Invalid, code, detail)
    }

    /// A file of this host that could not be used; its code is [`LOCAL_FILE`].
    #[must_use]
    pub fn file(action: &str, path: impl std::fmt::Debug, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let (kind, advice) = match error.kind() {
            E::NotFound => (ErrorKind::NotFound, "check the path"),
            E::PermissionDenied => (ErrorKind::Forbidden, "check its owner and permissions"),
            E::AlreadyExists => (ErrorKind::Conflict, "choose another name"),
            E::StorageFull | E::QuotaExceeded => (ErrorKind::Exhausted, "free some space and try again"),
            _ => (ErrorKind::Internal, "check the disk and the path"),
        };
        Self::refused(kind, LOCAL_FILE, format!("{action} {path:?} failed ({error}): {advice}"))
    }

    /// The server ended the output of a process without its status; the code is `process_lost`.
    #[must_use]
    pub fn no_status() -> Self {
        let detail = "the server ended the output without saying how the command ended: attach to it again";
        Self::refused(ErrorKind::Unavailable, "process_lost", detail)
    }

    pub(crate) fn lost(action: &'static str) -> impl Fn(hyper::Error) -> Self {
        move |error| Self::Lost { action, detail: error.to_string() }
    }
}
