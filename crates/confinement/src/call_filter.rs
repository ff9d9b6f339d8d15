//! The system calls that a caged program may make: an allow list of our own, beside the deny list that QEMU gives itself.
//!
//! The list is what QEMU 7.2 was seen to use (strace of boot, exec, balloon, pause, forks, snapshot, restore, hibernation, a
//! writable share, stop and start: 74 calls), and what other versions of it and of the C library use for the same work.
//! Everything else does not exist for it: the answer is `ENOSYS`, as from a kernel without the call, for which programs are
//! prepared. Killing it would turn a harmless call that nobody had seen into the loss of a VM.
//!
//! What is not there on purpose: keyrings (those of whoever started the server), `ptrace` and other processes' memory, `bpf`,
//! `perf_event_open`, `io_uring` (which makes calls that no filter sees), namespaces and mounts; sockets other than unix ones
//! (`AF_VSOCK` is outside of network namespaces); processes, as opposed to threads; and, unless it shares folders, everything
//! that changes modes, owners and attributes of files that it was handed.
//!
//! A list is made of groups, so that a program that forks itself can get another one.

use std::io;

use libc::{c_long, sock_filter};

/// AUDIT_ARCH_X86_64 of linux/audit.h: 64 bit, little endian, EM_X86_64.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are the x32 table's (asm/unistd.h).
const X32: u32 = 0x4000_0000;
/// Not in every version of the libc crate: Linux 6.6.
const SYS_FCHMODAT2: c_long = 452;

/// What every VMM needs.
const BASE: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_userfaultfd,
    // Files that it was handed, and those of its cage.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    // Sockets that it was handed.
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_restart_syscall,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Itself and the host. QEMU's own filter forbids further programs.
    libc::SYS_execve,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
];

/// What a VMM needs that shares folders; what it may do there is looked at by the filter for folders.
const FOLDERS: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_creat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_name_to_handle_at,
];

/// Installs the filter in this process. Needs no-new-privileges; nothing but executing the program may follow.
#[allow(unsafe_code)]
pub(crate) fn install(shares_folders: bool) -> io::Result<()> {
    let mut program = program(shares_folders)?;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to a live program of the length it names; the kernel copies it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn program(shares_folders: bool) -> io::Result<Vec<sock_filter>> {
    // Offsets in struct seccomp_data (linux/seccomp.h): nr 0, arch 4, args[0] at 16 (low half first).
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), offset);
    let jump = |kind, skip, value| instruction(libc::BPF_JMP | kind | libc::BPF_K, skip, value);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, (0, 0), action);
    let refuse = |error: i32| answer(libc::SECCOMP_RET_ERRNO | error.cast_unsigned());
    let allow = || answer(libc::SECCOMP_RET_ALLOW);
    let number = |call: c_long| u32::try_from(call).map_err(io::Error::other);
    let mut program = vec![
        load(4),
        jump(libc::BPF_JEQ, (1, 0), AUDIT_ARCH_X86_64),
        refuse(libc::ENOSYS),
        load(0),
        jump(libc::BPF_JGE, (0, 1), X32),
        refuse(libc::ENOSYS),
    ];
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        program.extend([
            jump(libc::BPF_JEQ, (0, 4), number(call)?),
            load(16),
            jump(libc::BPF_JEQ, (0, 1), libc::AF_UNIX.cast_unsigned()),
            allow(),
            refuse(libc::EAFNOSUPPORT),
        ]);
    }
    // A thread of its own, not a process. `clone3`, whose flags cannot be seen, is not there: the C library falls back.
    program.extend([
        jump(libc::BPF_JEQ, (0, 4), number(libc::SYS_clone)?),
        load(16),
        jump(libc::BPF_JSET, (0, 1), libc::CLONE_THREAD.cast_unsigned()),
        allow(),
        refuse(libc::EPERM),
    ]);
    let folders = if shares_folders { FOLDERS } else { &[] };
    for call in BASE.iter().chain(folders) {
        program.extend([jump(libc::BPF_JEQ, (0, 1), number(*call)?), allow()]);
    }
    program.push(refuse(libc::ENOSYS));
    Ok(program)
}

fn instruction(code: u32, (jump_true, jump_false): (u8, u8), value: u32) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "BPF codes are below 256 (linux/bpf_common.h)")]
    sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}
