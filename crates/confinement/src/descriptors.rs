//! Descriptors of the supervisor beside those that the VMM gets.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Lowest number our own descriptors are moved to, above all numbers a [`CageSpec`](crate::spec::CageSpec) names.
const OWN_DESCRIPTORS: RawFd = 100;

/// A descriptor of ours, close-on-exec and out of the way of those the VMM gets.
pub(crate) fn duplicate(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, OWN_DESCRIPTORS)?)
}
