//! Unix sockets of any path length.
//!
//! The kernel takes at most 107 bytes of path in a socket address (`sun_path`, unix(7)). A longer path is reached
//! through an open descriptor of its folder: `/proc/self/fd/N/name`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use camino::Utf8Path;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

use crate::error::ClientError;

/// Bytes of path that fit a socket address, the closing NUL left out.
const PATH_MAX: usize = 107;

/// A path short enough for a socket address; valid as long as this value lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl ShortPath {
    /// The short path.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Finds a path for a socket address that leads to `path`, whose folder must exist.
///
/// # Errors
/// The error of the system if the folder cannot be opened.
pub fn bind_path(path: &Utf8Path) -> std::io::Result<ShortPath> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    };
    if path.as_str().len() <= PATH_MAX {
        return Ok(ShortPath { path: path.into(), _folder: None });
    }
    let folder = rustix::fs::open(
        folder.as_std_path(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    Ok(ShortPath { path, _folder: Some(folder) })
}

/// Connects to a server.
pub(crate) async fn connect(path: &Utf8Path) -> Result<UnixStream, ClientError> {
    use std::io::ErrorKind as E;
    let failed = |source: std::io::Error| match source.kind() {
        // Reset: a server that died before it took the connection.
        E::NotFound | E::ConnectionRefused | E::ConnectionReset => {
            ClientError::NoServer { path: path.into(), source }
        }
        _ => ClientError::Socket { path: path.into(), source },
    };
    let short = bind_path(path).map_err(failed)?;
    let stream = UnixStream::connect(short.path()).await.map_err(failed)?;
    // Before anything is sent: what follows may be secrets.
    let server = stream.peer_cred().map_err(failed)?.uid();
    if is_trusted(server, rustix::process::geteuid().as_raw(), || owner_of_root(path)) {
        Ok(stream)
    } else {
        Err(ClientError::ForeignServer { path: path.into(), uid: server })
    }
}

/// True if a server of this user may be sent requests: our own, root's, and for root that of whoever owns the root
/// directory it was told to use.
fn is_trusted(server: u32, own: u32, owner: impl FnOnce() -> Option<u32>) -> bool {
    server == own || server == 0 || (own == 0 && owner() == Some(server))
}

/// The owner of `ROOT` in `ROOT/run/api.sock`.
fn owner_of_root(socket: &Utf8Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    socket.parent()?.parent()?.metadata().ok().map(|found| found.uid())
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn servers_of_other_users_are_told_nothing() {
        let nobody = || None;
        assert!(is_trusted(1000, 1000, nobody) && is_trusted(0, 1000, nobody) && is_trusted(0, 0, nobody));
        assert!(!is_trusted(1001, 1000, || Some(1001)), "the owner of a directory is not enough for users");
        assert!(is_trusted(1001, 0, || Some(1001)));
        assert!(!is_trusted(1001, 0, || Some(0)) && !is_trusted(1001, 0, nobody));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn paths_of_any_length_connect() {
        let folder = tempfile::tempdir().unwrap();
        let deep =
            Utf8PathBuf::from_path_buf(folder.path().join("d".repeat(120)).join("e".repeat(120))).unwrap();
        std::fs::create_dir_all(&deep).unwrap();
        for path in [deep.join("socket"), Utf8PathBuf::from_path_buf(folder.path().join("s")).unwrap()] {
            assert!(matches!(connect(&path).await, Err(ClientError::NoServer { .. })));
            let short = bind_path(&path).unwrap();
            let listener = tokio::net::UnixListener::bind(short.path()).unwrap();
            let (client, server) = tokio::join!(connect(&path), listener.accept());
            client.unwrap();
            server.unwrap();
        }
    }
}
