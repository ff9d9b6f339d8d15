//! Telling processes apart for good, and watching and ending them without races.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process, identified by number and start time: a number alone may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process number on the host.
    pub pid: i32,
    /// Start time in clock ticks since the host's boot (field 22 of `/proc/<pid>/stat`, proc(5)).
    pub start_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a living process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is in brackets and may hold anything; fields are counted after its end.
        let start_ticks = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("cannot read /proc/{pid}/stat"))
            })?;
        Ok(Self { pid, start_ticks })
    }

    /// Opens the process for watching and signalling; `None` if it has ended (a zombie counts as ended).
    ///
    /// # Errors
    /// If the kernel refuses for another reason than that.
    pub fn open(&self) -> io::Result<Option<ProcessDescriptor>> {
        let Some(descriptor) = open(self.pid)? else {
            return Ok(None);
        };
        // Looked up after opening: the number now surely means the process that the descriptor holds.
        match Self::of(self.pid) {
            Ok(found) => Ok((found == *self).then_some(ProcessDescriptor(descriptor))),
            Err(error) if is_gone(&error) => Ok(None),
            // What cannot be looked at may well live.
            Err(error) => Err(error),
        }
    }

    /// True if the number still is that of this process.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn lives(&self) -> io::Result<bool> {
        self.open().map(|found| found.is_some())
    }

    /// Kills the process if it lives and waits until it has ended.
    ///
    /// # Errors
    /// `TimedOut` if it still exists after `deadline`.
    pub async fn end(&self, deadline: Duration) -> io::Result<()> {
        let Some(process) = self.open()? else {
            return Ok(());
        };
        process.signal(Signal::KILL)?;
        tokio::time::timeout(deadline, process.ended()?).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not end", self.pid))
        })?
    }
}

/// True if reading about a process failed because there is none: the file is not there, or it ended while it was read.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// A process held open: signals through it never reach another one, also when its number is used again.
#[derive(Debug)]
pub struct ProcessDescriptor(OwnedFd);

impl ProcessDescriptor {
    /// Sends a signal; a process that has ended is fine.
    ///
    /// # Errors
    /// If it is not ours to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Err(Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// A future that resolves when the process has ended. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn ended(&self) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        let watched = watch(self.0.as_fd().try_clone_to_owned()?)?;
        // A pidfd becomes readable when the process ends (pidfd_open(2)).
        Ok(async move { watched.readable().await.map(|_| ()) })
    }
}

#[allow(unsafe_code)]
fn watch(descriptor: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the result, so that it stays open as long as it is registered.
    let watched = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE)
    };
    watched.map_err(io::Error::from)
}

/// `None` if there is no such process.
fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => Ok(Some(descriptor)),
        // The second: a number that is a thread's, not a process's.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Identity of the current boot of the host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_another_process() {
        let me = ProcessIdentity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.open().unwrap().is_some());
        let other = ProcessIdentity { start_ticks: me.start_ticks + 1, ..me };
        assert!(other.open().unwrap().is_none());
    }

    #[tokio::test]
    async fn ends_a_process_and_sees_it_end() {
        let mut child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        identity.end(Duration::from_secs(10)).await.unwrap();
        child.wait().await.unwrap();
        assert!(identity.open().unwrap().is_none());
        identity.end(Duration::from_secs(1)).await.unwrap();
    }
}
