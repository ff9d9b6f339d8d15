//! Descriptors the runtime waits for.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an open non-blocking descriptor with the runtime.
pub(in crate::platform::linux) fn register(
    descriptor: OwnedFd,
    interest: Interest,
) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor, always the same one, until it is dropped; and `AsyncFd` gives no
    // way to swap it for another.
    // Needed: tokio has given up its safe constructors as unsound.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(std::io::Error::from)
}
