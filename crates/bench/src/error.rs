//! Failures of a bench.

use microvm_client::ClientError;

/// Failure of a bench.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server refused or failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A step on this host failed.
    #[error("{doing} failed: {detail}")]
    Host {
        /// The step.
        doing: &'static str,
        /// Reason.
        detail: String,
    },
}

/// A step on this host that failed.
pub(crate) fn failed(doing: &'static str, error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Host { doing, detail: error.to_string() }
}
