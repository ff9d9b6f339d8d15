//! Answers the program's attempts to open certain files for writing with a read-only descriptor, and its attempts to punch
//! holes into those files with success.
//!
//! A seccomp filter in the program passes every `openat` with `O_RDWR`, and every `fallocate` that punches a hole, to the
//! supervisor (seccomp_unotify(2)); all other system calls are untouched. The supervisor looks at the path: for one of
//! `read_only_opens` it puts a descriptor of its own, opened read-only, into the program; any other open goes on as it was
//! asked for, under all other layers. Looking at a path in another process's memory is a race that the program could win; it
//! gains nothing by that, since the kernel then opens whatever it names under the same layers.
//!
//! A VMM that gives memory of its guest back to the host first punches a hole into the file below, and drops its private pages
//! only if that worked (QEMU, `ram_block_discard_range`). The file is shared and stays as it is; the answer is success, so that
//! the pages are dropped and read as the file again.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt as _};

use camino::Utf8PathBuf;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::cage::source_of;
use crate::filters::bpf::{self, answer, argument, jump, load, mask, number};
use crate::spec::CageSpec;

/// Mode of `fallocate` by which memory and disks are discarded (fallocate(2): a hole needs both).
const PUNCH_HOLE: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();

/// Longest path looked at, in bytes.
const PATH_LIMIT: usize = 256;

/// Most files that are given so.
const MOST_FILES: usize = 8;

/// Installs the filter in this process and sends its listener to the supervisor, with the files that were opened inside.
/// Needs no-new-privileges.
#[allow(unsafe_code)]
pub(crate) fn install(to: &OwnedFd, opened: &[OwnedFd]) -> io::Result<()> {
    // Steps to the instruction after the next one, if equal and if not.
    let equal = |value, to, otherwise| jump(libc::BPF_JEQ, (to, otherwise), value);
    let mut program = [
        load(bpf::ARCHITECTURE),
        equal(bpf::AUDIT_ARCH_X86_64, 0, 9),
        load(bpf::NUMBER),
        equal(number(libc::SYS_fallocate)?, 4, 0),
        equal(number(libc::SYS_openat)?, 0, 6),
        load(argument(2)),
        mask(libc::O_ACCMODE.cast_unsigned()),
        equal(libc::O_RDWR.cast_unsigned(), 2, 3),
        load(argument(1)),
        equal(PUNCH_HOLE, 0, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        bpf::allow(),
    ];
    let listener = bpf::install(&mut program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: the kernel has just made this descriptor for us. Needed: a system call returns it as a plain number.
    let listener = unsafe { OwnedFd::from_raw_fd(i32::try_from(listener).map_err(io::Error::other)?) };
    let rights: Vec<_> = std::iter::once(&listener).chain(opened).map(AsRawFd::as_raw_fd).collect();
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

/// The supervisor's end.
pub(crate) struct OpenFilter {
    listener: OwnedFd,
    /// Path in the cage, and the file opened read-only.
    files: Vec<(String, File)>,
}

/// Waits for the child's listener and opens what it will be given.
pub(crate) fn receive(from: &OwnedFd, spec: &CageSpec) -> io::Result<OpenFilter> {
    let mut byte = [0; 1];
    let mut space = nix::cmsg_space!([i32; 1 + MOST_FILES]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received = Vec::new();
    for one in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(descriptors) = one else { continue };
        for descriptor in descriptors {
            #[allow(unsafe_code)]
            // SAFETY: the kernel has just installed this descriptor in our table with the message.
            // Needed: `nix` hands received descriptors out as plain numbers.
            received.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    let mut received = received.into_iter();
    let listener = received.next().ok_or_else(|| io::Error::other("the child sent no listener"))?;
    let opened: Vec<File> = if spec.user.is_some() {
        let open = |target: &Utf8PathBuf| File::open(source_of(spec, target)?);
        spec.read_only_opens.iter().map(open).collect::<io::Result<_>>()?
    } else {
        received.map(File::from).collect()
    };
    if opened.len() != spec.read_only_opens.len() {
        return Err(io::Error::other("the child did not send all files that it may read"));
    }
    let files = spec.read_only_opens.iter().map(ToString::to_string).zip(opened).collect();
    Ok(OpenFilter { listener, files })
}

impl OpenFilter {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers one waiting system call. A call whose process has died meanwhile needs no answer.
    #[allow(unsafe_code)]
    pub(crate) fn answer(&self) {
        // SAFETY: the kernel wants the structure zeroed and fills it (seccomp_unotify(2)); all-zero is valid for it.
        // Needed: `libc` gives it no constructor.
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the listener is valid and `call` is of the size this request writes.
        // Needed: no library wraps the requests of a listener.
        if unsafe { libc::ioctl(self.listener.as_raw_fd(), RECEIVE, &raw mut call) } != 0 {
            return;
        }
        if i64::from(call.data.nr) == libc::SYS_fallocate {
            // Told as done where the file is one of ours, and carried out anywhere else: disks discard like this, too.
            let flags = if self.is_ours(call.pid, call.data.args[0]) { 0 } else { SECCOMP_CONTINUE };
            return self.respond(call.id, flags);
        }
        // The path lies in the memory of a program that may change it: see the head of this file for why that gains
        // nothing.
        let path = path_of(call.pid, call.data.args[1]);
        if let Some((_, file)) = path.and_then(|path| self.files.iter().find(|(known, _)| *known == path)) {
            let mut give = libc::seccomp_notif_addfd {
                id: call.id,
                flags: SECCOMP_ADDFD_FLAG_SEND,
                srcfd: file.as_raw_fd().cast_unsigned(),
                newfd: 0,
                newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
            };
            // SAFETY: the listener is valid and `give` is of the size this request reads.
            if unsafe { libc::ioctl(self.listener.as_raw_fd(), ADD_DESCRIPTOR, &raw mut give) } >= 0 {
                return;
            }
        }
        self.respond(call.id, SECCOMP_CONTINUE);
    }

    /// Has a call return 0 without being made, or go on with [`SECCOMP_CONTINUE`].
    #[allow(unsafe_code)]
    fn respond(&self, id: u64, flags: u32) {
        let mut response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
        // SAFETY: the listener is valid and `response` is of the size this request reads.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), SEND, &raw mut response) };
    }

    /// True if a descriptor of the program is one of the files that were opened read-only.
    fn is_ours(&self, pid: u32, descriptor: u64) -> bool {
        let Ok(theirs) = std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}")) else { return false };
        let is_it = |ours: std::fs::Metadata| (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino());
        self.files.iter().any(|(_, file)| file.metadata().is_ok_and(is_it))
    }
}

fn path_of(pid: u32, address: u64) -> Option<String> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = [0; PATH_LIMIT];
    let count = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..count].iter().position(|byte| *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

// linux/seccomp.h; the libc crate has the structures but not these.
const SECCOMP_ADDFD_FLAG_SEND: u32 = 1 << 1;
const SECCOMP_CONTINUE: u32 = 1;

/// `_IOWR('!', nr, size)` of asm-generic/ioctl.h.
const fn read_write(number: u64, size: usize) -> u64 {
    (3 << 30) | ((size as u64) << 16) | ((b'!' as u64) << 8) | number
}
const RECEIVE: u64 = read_write(0, size_of::<libc::seccomp_notif>());
const SEND: u64 = read_write(1, size_of::<libc::seccomp_notif_resp>());
/// `_IOW('!', 3, struct seccomp_notif_addfd)`.
const ADD_DESCRIPTOR: u64 =
    (1 << 30) | ((size_of::<libc::seccomp_notif_addfd>() as u64) << 16) | ((b'!' as u64) << 8) | 3;
