//! The one system call behind a new process in new namespaces.

use std::io;

/// Side of a clone.
pub(crate) enum Side {
    /// In the new process.
    Child,
    /// In the old one; the number of the new one.
    Parent(i32),
}

/// Like `fork`, with the new process in new namespaces (`flags` of clone(2)).
///
/// Call it only in a process with a single thread: then the child may do all that the parent could.
#[allow(unsafe_code)]
pub(crate) fn clone(flags: libc::c_int) -> io::Result<Side> {
    let flags = flags | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child gets a copy of everything and returns
    // here on its own copy of the stack. The caller promises that there is one thread only.
    // Needed: `fork` of the C library enters no namespaces, and wrappers of `clone` want a function and a stack for it.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match result {
        0 => Ok(Side::Child),
        number if number > 0 => Ok(Side::Parent(i32::try_from(number).map_err(io::Error::other)?)),
        _ => Err(io::Error::last_os_error()),
    }
}
