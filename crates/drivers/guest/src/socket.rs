//! Reaching the channel's socket.

use std::os::fd::AsRawFd as _;

use camino::Utf8Path;
use microvm_ports::GuestError;
use microvm_ports::guest::GuestEndpoint;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest answer to `CONNECT` that is read: `OK`, a number, a newline.
const MOST_ANSWER: usize = 64;

/// Connects to an endpoint.
pub(crate) async fn connect(endpoint: &GuestEndpoint) -> Result<UnixStream, GuestError> {
    match endpoint {
        GuestEndpoint::UnixSocket(path) => connect_unix(path).await,
        GuestEndpoint::HybridVsock { path, port } => {
            let mut socket = connect_unix(path).await?;
            let failed = |error: std::io::Error| GuestError::Unreachable(format!("{path}: {error}"));
            socket.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(failed)?;
            let mut answer = Vec::new();
            while answer.last() != Some(&b'\n') {
                if answer.len() > MOST_ANSWER {
                    return Err(GuestError::Unreachable(format!("{path}: the answer to CONNECT has no end")));
                }
                // Byte by byte: what follows the line belongs to the agent.
                answer.push(socket.read_u8().await.map_err(failed)?);
            }
            if answer.starts_with(b"OK ") {
                Ok(socket)
            } else {
                Err(GuestError::Unreachable(format!("{path}: nobody listens on port {port} of the guest")))
            }
        }
    }
}

/// Socket addresses hold 108 bytes; a longer path is reached through its directory.
async fn connect_unix(path: &Utf8Path) -> Result<UnixStream, GuestError> {
    let failed = |error: std::io::Error| GuestError::Unreachable(format!("{path}: {error}"));
    if path.as_str().len() < 100 {
        return UnixStream::connect(path).await.map_err(failed);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(GuestError::Unreachable(format!("{path} is not the path of a socket")));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(parent.as_str(), flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).await.map_err(failed)
}
