//! Running what users want to happen around lifecycle events.

use std::time::Duration;

use async_trait::async_trait;
use microvm_types::template::HookAction;

/// Failure of a hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The program could not be started.
    #[error("{program} could not be started: {detail}")]
    Start {
        /// Program of the hook.
        program: String,
        /// Error of the system.
        detail: String,
    },
    /// The program ended with a failure.
    #[error("{program} ended with {status}: {detail}")]
    Failed {
        /// Program of the hook.
        program: String,
        /// Exit status.
        status: String,
        /// The end of its standard error.
        detail: String,
    },
    /// The address could not be reached or answered with an error status.
    #[error("POST {address} failed: {detail}")]
    Webhook {
        /// Address of the hook.
        address: String,
        /// Fault.
        detail: String,
    },
    /// It took too long; a program is killed with its process group then.
    #[error("it did not finish within {0:?}")]
    Timeout(Duration),
}

/// Runs hooks on the host.
#[async_trait]
pub trait HookRunner: Send + Sync {
    /// Runs one action with `event` (JSON) on its standard input or as the body of a POST. If the future is dropped, a
    /// program is killed.
    async fn run(
        &self,
        action: &HookAction,
        event: &serde_json::Value,
        timeout: Duration,
    ) -> Result<(), HookError>;
}
