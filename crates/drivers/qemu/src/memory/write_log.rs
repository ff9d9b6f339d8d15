//! The kernel's note of which pages a guest writes: its memory is copied while it runs, and only what was written meanwhile
//! is copied again while it is paused (docs/design/0018).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use microvm_ports::branch::PageRange;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::mapping::Mapping;
use super::scan;

/// Target of the link to such a descriptor in /proc.
const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

// linux/userfaultfd.h: version, requests (`_IOWR(0xAA, number, struct)`), the feature of Linux 6.7 by which the kernel
// notes writes by itself, and what a range is registered for.
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: u64 = request::<[u64; 3]>(0x3F);
const UFFDIO_REGISTER: u64 = request::<[u64; 4]>(0x00);
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// The feature is of 6.7; the scan that protects pages could lose their dirty marks until 6.9.
const OLDEST: (u32, u32) = (6, 9);
/// `UFFD_USER_MODE_ONLY`: allowed to everybody.
const USER_MODE_ONLY: i32 = 1;

const fn request<T>(number: u64) -> u64 {
    (3 << 30) | ((size_of::<T>() as u64) << 16) | (UFFD_API << 8) | number
}

/// A guest's memory whose writes the kernel notes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteLog {
    mapping: Mapping,
}

impl WriteLog {
    /// Has the kernel note writes to `mapping`, for as long as the process lives.
    ///
    /// # Errors
    /// If the process was not given a descriptor for it when it began (a kernel without `userfaultfd`, another processor
    /// than x86-64, a VMM started by an earlier version of this program), or the kernel does not note writes.
    pub(crate) fn begin(mapping: Mapping) -> io::Result<Self> {
        let descriptor = descriptor_of(mapping.process.pid)?;
        match agree(&descriptor) {
            // It is done once in the life of a descriptor. If it never was, the next request fails for that.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            outcome => outcome?,
        }
        let mut range = [mapping.start, mapping.length, UFFDIO_REGISTER_MODE_WP, 0];
        // SAFETY: the descriptor is open, and the array has the layout and length of `struct uffdio_register`; it changes
        // nothing of this process. Needed: neither `rustix` nor `nix` knows the request.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { mapping })
    }

    /// All changed pages; from now on it is noted which of them are written.
    pub(crate) fn protect_changed(&self) -> io::Result<Vec<PageRange>> {
        scan::protect_changed(&self.mapping)
    }

    /// Pages that have changed since the last [`WriteLog::protect_changed`].
    pub(crate) fn written(&self) -> io::Result<Vec<PageRange>> {
        scan::written_pages(&self.mapping)
    }
}

/// Asks for the one feature that is needed.
fn agree(descriptor: &OwnedFd) -> io::Result<()> {
    let mut handshake = [UFFD_API, UFFD_FEATURE_WP_ASYNC, 0];
    // SAFETY: the descriptor is open, and the array has the layout and length of `struct uffdio_api`.
    // Needed: neither `rustix` nor `nix` knows the request.
    match unsafe { libc::ioctl(descriptor.as_raw_fd(), UFFDIO_API, handshake.as_mut_ptr()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of this very process.
pub(super) fn own_descriptor() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: the call makes a descriptor, which is nobody else's, and nothing more.
    // Needed: `rustix` has the call as an unsafe function only, without a name for the flag of user mode.
    unsafe {
        let made = libc::syscall(libc::SYS_userfaultfd, flags);
        let made = i32::try_from(made).ok().filter(|made| *made >= 0);
        made.map(|made| OwnedFd::from_raw_fd(made)).ok_or_else(io::Error::last_os_error)
    }
}

/// Succeeds if the kernel notes writes and VMMs can be given the descriptor for it; else tells the reason.
pub(crate) fn copies_ahead() -> Result<(), String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err("not on this processor".to_owned());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    if (numbers.next(), numbers.next()) < (Some(OLDEST.0), Some(OLDEST.1)) {
        return Err(format!("the kernel is {release}; {}.{} or newer is needed", OLDEST.0, OLDEST.1));
    }
    let descriptor = own_descriptor().map_err(|error| format!("userfaultfd: {error}"))?;
    agree(&descriptor).map_err(|error| format!("the kernel does not note writes: {error}"))
}

/// The `userfaultfd` of a process, as a descriptor of our own.
fn descriptor_of(pid: i32) -> io::Result<OwnedFd> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "it has no descriptor to note writes with");
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == USERFAULTFD) {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(missing)?;
            let number = name.parse().map_err(io::Error::other)?;
            let process = pidfd_open(Pid::from_raw(pid).ok_or_else(missing)?, PidfdFlags::empty())?;
            let taken = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
            // A VMM in other hands may have put something else there meanwhile.
            let own = format!("/proc/self/fd/{}", taken.as_raw_fd());
            return if std::fs::read_link(own)?.as_os_str() == USERFAULTFD {
                Ok(taken)
            } else {
                Err(missing())
            };
        }
    }
    Err(missing())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use microvm_confinement::ProcessIdentity;
    use microvm_ports::branch::PAGE_SIZE;

    use super::super::mapping::this_process;
    use super::*;

    fn pages(list: &[(u64, u64)]) -> Vec<PageRange> {
        list.iter().map(|&(first, count)| PageRange { first, count }).collect()
    }

    /// A private mapping of a file in this very process.
    #[test]
    fn what_is_written_after_the_protection_is_found() {
        if let Err(why) = copies_ahead() {
            eprintln!("SKIPPED: {why}");
            return;
        }
        let _descriptor = own_descriptor().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE_SIZE as u64).unwrap();
        file.write_all_at(&[7; PAGE_SIZE], 9 * PAGE_SIZE as u64).unwrap();
        // SAFETY: nobody else knows the file.
        let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap();
        let mut write = |list: &[usize]| list.iter().for_each(|page| map[page * PAGE_SIZE] += 1);
        write(&[3, 4, 5, 20, 63]);
        let process = this_process();
        let mapping = Mapping { process, start: map.as_ptr() as u64, length: map.len() as u64 };
        let log = WriteLog::begin(mapping).unwrap();
        assert_eq!(log.protect_changed().unwrap(), pages(&[(3, 3), (20, 1), (63, 1)]));
        assert_eq!(log.written().unwrap(), pages(&[]));
        // Reading is no writing; a page that changes for the first time counts.
        let mut write = |list: &[usize]| list.iter().for_each(|page| map[page * PAGE_SIZE] += 1);
        write(&[4, 30]);
        assert_eq!(map[9 * PAGE_SIZE], 7);
        assert_eq!(log.written().unwrap(), pages(&[(4, 1), (30, 1)]));
        assert_eq!(log.written().unwrap(), pages(&[(4, 1), (30, 1)]), "looking changes nothing");
        // The next branch begins again, also in another server.
        let log = WriteLog::begin(mapping).unwrap();
        assert_eq!(log.protect_changed().unwrap(), pages(&[(3, 3), (20, 1), (30, 1), (63, 1)]));
        assert_eq!(log.written().unwrap(), pages(&[]));
    }

    #[test]
    fn a_process_without_a_descriptor_is_told() {
        let mapping = Mapping {
            process: ProcessIdentity { pid: 1, start_ticks: 0 },
            start: 0,
            length: PAGE_SIZE as u64,
        };
        assert!(WriteLog::begin(mapping).is_err());
    }
}
