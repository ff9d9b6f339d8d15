//! Content of a file, to the host.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use microvm_protocol::messages::{ReadFile, Reply};
use microvm_protocol::mux::StreamHandle;
use tokio::runtime::Handle;

use super::path::{absolute, failed};
use super::stat::describe;
use crate::core::blocking::blocking;
use crate::core::bulk::Sender;
use crate::core::failure::{AgentError, AgentResult, show};

/// Sends what the file is, then its content.
pub(in crate::platform::linux) async fn read(
    stream: &Arc<StreamHandle>,
    request: ReadFile,
) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    blocking(move || {
        let path = absolute(&request.path)?;
        // Without waiting: a FIFO or a device must not hold the thread for ever.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(failed("open", path))?;
        let metadata = file.metadata().map_err(failed("look at", path))?;
        if !metadata.is_file() {
            return Err(AgentError::invalid(format!("{} is not a regular file", show(&request.path))));
        }
        runtime.block_on(stream.send_message(Reply::Stat(describe(path, &metadata))))?;
        let until = request.length.map_or(u64::MAX, |length| request.offset.saturating_add(length));
        Sender { stream: &stream, runtime: &runtime, sent: None }.file(&file, path, request.offset, until)?;
        Ok(())
    })
    .await
}
