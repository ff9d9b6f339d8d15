//! Answers the program's attempts to open certain files for writing with a read-only descriptor.
//!
//! A seccomp filter in the program passes every `openat` with `O_RDWR` to the supervisor (seccomp_unotify(2)); all other
//! system calls are untouched. The supervisor looks at the path: for one of `read_only_opens` it puts a descriptor of
//! its own, opened read-only, into the program; any other open goes on as it was asked for, under all other layers.
//! Looking at a path in another process's memory is a race that the program could win; it gains nothing by that,
//! since the kernel then opens whatever it names under the same layers.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use camino::Utf8PathBuf;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::cage::source_of;
use crate::filters::bpf::{self, answer, argument, jump, load, mask, number};
use crate::spec::CageSpec;

/// Longest path looked at, in bytes.
const PATH_LIMIT: usize = 256;

/// Most files that are given so.
const MOST_FILES: usize = 8;

/// Installs the filter in this process and sends its listener to the supervisor, with the files that were opened inside.
/// Needs no-new-privileges.
#[allow(unsafe_code)]
pub(crate) fn install(to: &OwnedFd, opened: &[OwnedFd]) -> io::Result<()> {
    let unless_equal = |value, skip| jump(libc::BPF_JEQ, (0, skip), value);
    let mut program = [
        load(bpf::ARCHITECTURE),
        unless_equal(bpf::AUDIT_ARCH_X86_64, 6),
        load(bpf::NUMBER),
        unless_equal(number(libc::SYS_openat)?, 4),
        load(argument(2)),
        mask(libc::O_ACCMODE.cast_unsigned()),
        unless_equal(libc::O_RDWR.cast_unsigned(), 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        bpf::allow(),
    ];
    let listener = bpf::install(&mut program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: the kernel has just made this descriptor for us.
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
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the listener is valid and `call` is of the size this request writes.
        if unsafe { libc::ioctl(self.listener.as_raw_fd(), RECEIVE, &raw mut call) } != 0 {
            return;
        }
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
        let mut go_on = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: SECCOMP_CONTINUE };
        // SAFETY: the listener is valid and `go_on` is of the size this request reads.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), SEND, &raw mut go_on) };
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
