//! Kernel and initial file system of a machine, which QEMU maps for as long as it lives and reads only at the boot.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use microvm_confinement::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Takes the pages of the files that a process maps by these names out of its memory. The files are in the page cache
/// afterwards as they were before, so that the next boot reads no disk. Pages that another process maps, too, stay: they
/// cost the host nothing more.
///
/// # Errors
/// If the process has ended, or the kernel does not let this one advise it: that takes CAP_SYS_NICE, and Linux 5.16. Nothing has
/// changed then.
pub(crate) fn release(process: ProcessIdentity, names: &[&str]) -> io::Result<()> {
    let ended = || io::Error::new(io::ErrorKind::NotFound, "its process has ended");
    let held = pidfd_open(Pid::from_raw(process.pid).ok_or_else(ended)?, PidfdFlags::empty())?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid))?;
    // After both: a process number that changed hands meanwhile is noticed.
    if !process.lives()? {
        return Err(ended());
    }
    for range in mapped(&maps, names) {
        // First, where it does nothing: Linux before 5.16 knows the other advice alone, and would leave the files to be read from the
        // disk by every boot.
        advise(&held, range, libc::MADV_WILLNEED)?;
        advise(&held, range, libc::MADV_PAGEOUT)?;
        advise(&held, range, libc::MADV_WILLNEED)?;
    }
    Ok(())
}

/// Address and bytes of a mapping.
type Range = (usize, usize);

/// Lines of proc(5) maps, `start-end perms offset device inode path`, that have one of these paths.
fn mapped<'a>(maps: &'a str, names: &'a [&str]) -> impl Iterator<Item = Range> + 'a {
    maps.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let path = fields.nth(4)?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        names.contains(&path).then(|| (start, end.saturating_sub(start)))
    })
}

fn advise(process: &OwnedFd, (start, length): Range, advice: i32) -> io::Result<()> {
    let range = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(start), iov_len: length };
    // SAFETY: the kernel reads one `iovec` of this process, and its address is one of the other process: no memory of this one
    // is named by it. Needed: neither `rustix` nor `nix` knows the call.
    let advised = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            &raw const range,
            1_usize,
            advice,
            0_u32,
        )
    };
    if advised < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::mapping::this_process;
    use super::*;

    const LENGTH: usize = 4 << 20;

    /// KiB of the mapping at this address that are in the memory of this process.
    fn resident_kib(start: usize) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, mapping) = maps.split_once(&format!("{start:x}-")).unwrap();
        let line = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn files_of_these_names_only() {
        let maps = "\
7f0000000000-7f0000002000 r--p 00000000 fe:00 12 /kernel
7f0000002000-7f0000003000 rw-p 00002000 fe:00 12 /kernel
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 r--p 00000000 fe:00 13 /kernel-of-another
7f0000005000-7f0000006000 r--p 00000000 fe:00 14 /initramfs
nonsense
";
        let found: Vec<Range> = mapped(maps, &["/kernel", "/initramfs"]).collect();
        let at = 0x7f00_0000_0000;
        assert_eq!(found, [(at, 0x2000), (at + 0x2000, 0x1000), (at + 0x5000, 0x1000)]);
    }

    #[test]
    #[allow(clippy::print_stdout, reason = "says what it skips")]
    fn a_file_leaves_the_memory_of_the_process_and_can_be_read_again() {
        // On a disk: what lies in memory only has nowhere to go.
        let mut file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let content: Vec<u8> = (0..LENGTH).map(|at| u8::try_from(at / 4_096 % 251).unwrap()).collect();
        file.write_all(&content).unwrap();
        file.as_file().sync_all().unwrap();
        // SAFETY: nobody else knows the file.
        let map =
            unsafe { memmap2::MmapOptions::new().len(LENGTH).map_copy_read_only(file.as_file()) }.unwrap();
        assert!(*map == *content);
        let (start, name) = (map.as_ptr().addr(), file.path().to_str().unwrap());
        let before = resident_kib(start);
        assert!(before > LENGTH >> 11, "{before} KiB are there");
        if let Err(error) = release(this_process(), &[name]) {
            let known = [Some(libc::EPERM), Some(libc::EINVAL), Some(libc::ENOSYS)];
            assert!(known.contains(&error.raw_os_error()), "{error}");
            assert_eq!(resident_kib(start), before, "what cannot be brought back stays");
            println!("SKIPPED: files cannot leave the memory of another process here: {error}");
            return;
        }
        // Some pages may be on lists of another processor.
        let after = resident_kib(start);
        assert!(after <= before / 2, "{before} KiB before, {after} after");
        assert!(*map == *content);
        let ended = ProcessIdentity { start_ticks: this_process().start_ticks + 1, ..this_process() };
        assert!(release(ended, &[name]).is_err());
    }
}
