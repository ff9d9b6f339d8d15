//! Descriptors of the supervisor beside those that the VMM gets.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};

/// Lowest number our own descriptors are moved to, above all numbers a [`CageSpec`](crate::spec::CageSpec) names.
const OWN_DESCRIPTORS: RawFd = 100;

/// A descriptor of ours, close-on-exec and out of the way of those the VMM gets.
pub(crate) fn duplicate(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    #[allow(unsafe_code)]
    // SAFETY: fcntl on a valid descriptor; the result is a new one that nobody else owns.
    unsafe {
        let new = libc::fcntl(descriptor.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, OWN_DESCRIPTORS);
        if new < 0 { Err(io::Error::last_os_error()) } else { Ok(std::os::fd::FromRawFd::from_raw_fd(new)) }
    }
}
