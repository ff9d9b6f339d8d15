//! The guest's end of the channel as a non-blocking device.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, OwnedFd};

use bytes::{BufMut as _, BytesMut};
use rustix::event::epoll;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::descriptor;
use crate::core::port::{Boundaries, Port, ReadOutcome};

/// A device or socket that can be read from and written to without blocking.
///
/// A virtio-serial port shows "hung up" for as long as no host is connected, which would make any level-triggered wait
/// return at once for ever. So the port sits in an epoll set of its own, edge-triggered, and the runtime waits for that
/// set: it wakes up once per change, a host that comes back included. Room to write is asked about only while there is
/// something that found none: else every frame that leaves would wake the agent once more.
pub(crate) struct DevicePort {
    device: OwnedFd,
    boundaries: Boundaries,
    changes: AsyncFd<OwnedFd>,
    wants_room: bool,
}

fn interest(room: bool) -> epoll::EventFlags {
    let input = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if room { input | epoll::EventFlags::OUT } else { input }
}

impl DevicePort {
    /// Takes over an open non-blocking device.
    pub(crate) fn new(device: OwnedFd, boundaries: Boundaries) -> std::io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, &device, epoll::EventData::new_u64(0), interest(false))?;
        let changes = descriptor::register(set, Interest::READABLE)?;
        Ok(Self { device, boundaries, changes, wants_room: false })
    }
}

impl Port for DevicePort {
    fn boundaries(&self) -> Boundaries {
        self.boundaries
    }

    fn want_room(&mut self, wanted: bool) -> std::io::Result<()> {
        if wanted || self.wants_room {
            let set = self.changes.get_ref();
            epoll::modify(set, &self.device, epoll::EventData::new_u64(0), interest(wanted))?;
        }
        self.wants_room = wanted;
        Ok(())
    }

    async fn changed(&self) -> std::io::Result<()> {
        let mut guard = self.changes.readable().await?;
        // Before the set is emptied: a change in between makes it ready again.
        guard.clear_ready();
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        let immediately = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.changes.get_ref(), &mut events[..], Some(&immediately))?;
        Ok(())
    }

    fn read(&self, buffer: &mut BytesMut) -> std::io::Result<ReadOutcome> {
        let room = buffer.chunk_mut();
        let (address, length) = (room.as_mut_ptr(), room.len());
        // SAFETY: `address` points to `length` writable bytes of the buffer's spare room, borrowed until the call ends.
        // Needed: the spare room of a `BytesMut` has no safe access, and filling it with zeros first would double the work.
        let count = unsafe { libc::read(self.device.as_raw_fd(), address.cast(), length) };
        if let Ok(count) = usize::try_from(count) {
            // SAFETY: the kernel has written `count` bytes at the beginning of the spare room.
            unsafe { buffer.advance_mut(count) };
            return Ok(if count == 0 { ReadOutcome::HungUp } else { ReadOutcome::Bytes });
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::AGAIN | Errno::INTR) => Ok(ReadOutcome::Nothing),
            Some(Errno::CONNRESET | Errno::PIPE | Errno::NODEV) => Ok(ReadOutcome::HungUp),
            _ => Err(error),
        }
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<Option<usize>> {
        match rustix::io::write(&self.device, bytes) {
            Ok(count) => Ok(Some(count)),
            // Without a host there is nobody to write to; the reading side finds that out.
            Err(Errno::AGAIN | Errno::INTR | Errno::PIPE | Errno::CONNRESET | Errno::NODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
