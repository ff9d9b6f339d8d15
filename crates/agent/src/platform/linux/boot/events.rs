//! The kernel's news of devices, so that nothing has to be polled for.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::{BootError, DEVICE_DEADLINE, failed};

/// A socket that wakes up whenever a device appears or changes.
pub(in crate::platform::linux) struct DeviceEvents {
    socket: OwnedFd,
}

impl DeviceEvents {
    /// Listens from now on: look for the device after this, then wait.
    pub(in crate::platform::linux) fn listen() -> Result<Self, BootError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(netlink::KOBJECT_UEVENT),
        )
        .map_err(failed("open the socket of device events"))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))
            .map_err(failed("listen for device events"))?;
        Ok(Self { socket })
    }

    /// Calls `look` now and after every event until it finds something.
    pub(in crate::platform::linux) fn wait_for<T>(
        &mut self,
        what: &str,
        deadline: Instant,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, BootError> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BootError::Missing { what: what.to_owned(), after: DEVICE_DEADLINE });
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut sockets = [PollFd::new(&self.socket, PollFlags::IN)];
            // An interrupted wait only looks once more.
            let _ = poll(&mut sockets, Some(&timeout));
            let mut buffer = [0u8; 4096];
            // The content of the events is ignored: the waiter looks for its device again after any event.
            while rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()).is_ok() {}
        }
    }
}
