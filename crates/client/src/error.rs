//! What can go wrong on the way to the server and back.

use camino::Utf8PathBuf;
use microvm_api::Problem;
use microvm_types::{Action, ErrorKind};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server listens on the socket.
    #[error("no server listens on {path} ({source})")]
    NoServer {
        /// The socket.
        path: Utf8PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket cannot be used at all.
    #[error(
        "the socket {path} cannot be used ({source}): look at its owner and permissions, or choose another root"
    )]
    Socket {
        /// The socket.
        path: Utf8PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else listens on the socket; nothing was sent.
    #[error(
        "the server on {path} belongs to uid {uid}, who is neither you nor root: nothing was sent to it; choose another root with --root"
    )]
    ForeignServer {
        /// The socket.
        path: Utf8PathBuf,
        /// Whose it is.
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
        /// What was seen.
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
    /// The caller's own data could not be read.
    #[error("the data to send could not be read: {0}")]
    Source(String),
}

impl ClientError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoServer { .. } | Self::Lost { .. } => ErrorKind::Unavailable,
            Self::Socket { .. } | Self::ForeignServer { .. } => ErrorKind::Forbidden,
            Self::Problem(problem) => problem.kind,
            Self::Answer(_) | Self::Damaged { .. } => ErrorKind::Internal,
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
            Self::Problem(problem) => &problem.code,
            Self::Lost { .. } => "connection_lost",
            Self::Answer(_) => "answer_not_understood",
            Self::Damaged { .. } => "transfer_damaged",
            Self::Source(_) => "source_unreadable",
        }
    }

    /// The failure as a problem body, whoever found it.
    #[must_use]
    pub fn to_problem(&self) -> Problem {
        match self {
            Self::Problem(problem) => (**problem).clone(),
            other => {
                let remedies = match other {
                    Self::NoServer { .. } => vec![Action::StartServer.any()],
                    _ => Vec::new(),
                };
                Problem::new(other.kind(), other.code(), other.to_string()).with_remedies(remedies)
            }
        }
    }

    pub(crate) fn lost(action: &'static str) -> impl Fn(hyper::Error) -> Self {
        move |error| Self::Lost { action, detail: error.to_string() }
    }
}
