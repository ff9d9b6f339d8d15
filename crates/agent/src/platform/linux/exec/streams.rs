//! The agent's ends of a program's streams, as the core uses them.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::core::platform::{Input, Output};
use crate::platform::linux::descriptor;

/// Capacity asked for the pipe of a program that writes much: fewer changes between reader and writer on one emulated
/// processor.
const PIPE_SIZE: usize = 256 * 1024;
/// End-of-transmission, as if typed.
const END_OF_TRANSMISSION: &[u8] = &[4];

/// Main side of a terminal, or the writing end of a pipe.
pub(crate) struct InputEnd {
    descriptor: AsyncFd<OwnedFd>,
    is_terminal: bool,
}

impl InputEnd {
    pub(super) fn new(descriptor: OwnedFd, is_terminal: bool) -> io::Result<Self> {
        Ok(Self { descriptor: descriptor::register(descriptor, Interest::WRITABLE)?, is_terminal })
    }
}

impl Input for InputEnd {
    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |descriptor: &OwnedFd| Ok(rustix::io::write(descriptor, bytes)?);
            match self.descriptor.async_io(Interest::WRITABLE, write).await {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end_mark(&self) -> Option<&'static [u8]> {
        self.is_terminal.then_some(END_OF_TRANSMISSION)
    }
}

/// Main side of a terminal, or the reading end of a pipe.
pub(crate) struct OutputEnd {
    descriptor: AsyncFd<OwnedFd>,
}

impl OutputEnd {
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: descriptor::register(descriptor, Interest::READABLE)? })
    }
}

/// Reads once. A terminal that nobody has open any more answers with `EIO`: its end.
fn read_once(descriptor: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::io::read(descriptor, buffer) {
        Ok(count) => Ok(count),
        Err(Errno::IO) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl Output for OutputEnd {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.descriptor.async_io(Interest::READABLE, |descriptor| read_once(descriptor, buffer)).await
    }

    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read_once(self.descriptor.get_ref(), buffer)
    }

    fn expect_much(&self) {
        // Refused beyond a user's share, and by a terminal; the present capacity is enough then.
        let _ = rustix::pipe::fcntl_setpipe_size(self.descriptor.get_ref(), PIPE_SIZE);
    }
}
