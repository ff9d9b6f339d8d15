//! Work that may wait for a disk.

use super::failure::{AgentError, AgentResult};

/// Runs work on a helper thread, so that the runtime's thread keeps serving the channel.
///
/// # Errors
/// Those of the work; [`AgentError::internal`] if it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> AgentResult<T> + Send + 'static,
) -> AgentResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::internal(format!("the helper thread failed: {error}")))?
}
