//! Connecting to unix sockets in deep directories.

use std::io;
use std::os::fd::AsRawFd;

use camino::Utf8Path;
use tokio::net::UnixStream;

/// Connects to `directory/name`. A socket address holds 108 bytes only (unix(7)); going through an open descriptor of
/// the directory makes every path short.
pub(crate) async fn connect(directory: &Utf8Path, name: &str) -> io::Result<UnixStream> {
    let opened = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
    let stream = UnixStream::connect(path).await;
    drop(opened);
    stream
}
