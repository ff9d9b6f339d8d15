//! The server's file descriptors: none of its starter's, and enough of its own.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Closes everything above the standard streams. Whoever starts a command that starts the server may hold a lock or a
/// pipe open without knowing, and would wait for ever for a server that holds it too.
pub(crate) fn close_inherited() -> io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe way to close what one does not own")]
    // SAFETY: called first of all, while this process has one thread and owns no descriptor above the standard ones.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the number of descriptors to what this process may have: each VM takes several. The usual limit of 1024 is
/// for programs that use `select`.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, ?current, "the limit of open files could not be raised");
    }
}
