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
//!
//! The kernel runs the program for each call (since Linux 5.11 only once for those whose answer is always the same), so it is a
//! search tree: eight comparisons instead of up to 150.

use std::collections::BTreeMap;
use std::io;

use libc::{c_long, sock_filter};

use crate::filters::bpf::{self, SYS_FCHMODAT2, allow, argument, jump, load, number, refuse};

/// Calls that every VMM needs.
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

/// Calls that a VMM with shared folders needs; the filter for folders checks their arguments.
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

/// Verdict on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It happens.
    Allow,
    /// It does not exist.
    Missing,
    /// It makes unix sockets only.
    UnixSocket,
    /// It makes a thread, not a process.
    Thread,
}

/// Installs the filter in this process. Needs no-new-privileges; nothing but executing the program may follow.
pub(crate) fn install(shares_folders: bool) -> io::Result<()> {
    bpf::install(&mut program(shares_folders)?, 0).map(|_| ())
}

fn program(shares_folders: bool) -> io::Result<Vec<sock_filter>> {
    let mut program = bpf::this_table_only().to_vec();
    program.extend(tree(&segments(shares_folders)?)?);
    Ok(program)
}

/// The answers by number: each holds up to the first number of the next one.
fn segments(shares_folders: bool) -> io::Result<Vec<(u32, Answer)>> {
    let mut listed = BTreeMap::new();
    let folders = if shares_folders { FOLDERS } else { &[] };
    for call in BASE.iter().chain(folders) {
        listed.insert(number(*call)?, Answer::Allow);
    }
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        listed.insert(number(call)?, Answer::UnixSocket);
    }
    // `clone3`, whose flags cannot be seen, is not there: the C library falls back.
    listed.insert(number(libc::SYS_clone)?, Answer::Thread);
    let mut segments = vec![(0, Answer::Missing)];
    for (call, answer) in &listed {
        let before = segments.last().map_or(Answer::Missing, |(_, answer)| *answer);
        if before != *answer {
            segments.push((*call, *answer));
        }
        if !listed.contains_key(&(call + 1)) {
            segments.push((call + 1, Answer::Missing));
        }
    }
    Ok(segments)
}

/// A program that finds the segment of the loaded number by halves and answers.
fn tree(segments: &[(u32, Answer)]) -> io::Result<Vec<sock_filter>> {
    let (left, right) = segments.split_at(segments.len() / 2);
    match (left, right) {
        ([_, ..], [(first, _), ..]) => {
            let (left, right) = (tree(left)?, tree(right)?);
            let skip = u8::try_from(left.len()).map_err(io::Error::other)?;
            Ok(std::iter::once(jump(libc::BPF_JGE, (skip, 0), *first)).chain(left).chain(right).collect())
        }
        (_, [(_, answer), ..]) => Ok(leaf(*answer)),
        _ => Ok(leaf(Answer::Missing)),
    }
}

fn leaf(answer: Answer) -> Vec<sock_filter> {
    match answer {
        Answer::Allow => vec![allow()],
        Answer::Missing => vec![refuse(libc::ENOSYS)],
        Answer::UnixSocket => vec![
            load(argument(0)),
            jump(libc::BPF_JEQ, (0, 1), libc::AF_UNIX.cast_unsigned()),
            allow(),
            refuse(libc::EAFNOSUPPORT),
        ],
        Answer::Thread => vec![
            load(argument(0)),
            jump(libc::BPF_JSET, (0, 1), libc::CLONE_THREAD.cast_unsigned()),
            allow(),
            refuse(libc::EPERM),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::bpf::{AUDIT_ARCH_X86_64, X32, run};

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn error(error: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | error.cast_unsigned()
    }

    #[test]
    fn each_number_is_answered_as_the_lists_say_and_soon() {
        for shares in [false, true] {
            let program = program(shares).unwrap();
            let mut most = 0;
            for call in 0..1_000 {
                let wanted: c_long = call.into();
                let listed = BASE.contains(&wanted) || (shares && FOLDERS.contains(&wanted));
                let (found, steps) = run(&program, AUDIT_ARCH_X86_64, call, [0; 6]);
                let expected = match wanted {
                    libc::SYS_socket | libc::SYS_socketpair => error(libc::EAFNOSUPPORT),
                    libc::SYS_clone => error(libc::EPERM),
                    _ if listed => ALLOW,
                    _ => error(libc::ENOSYS),
                };
                assert_eq!(found, expected, "{call}, folders: {shares}");
                most = most.max(steps);
            }
            assert!(most <= 17, "{most} steps of {}", program.len());
        }
    }

    #[test]
    fn only_unix_sockets_and_threads_are_made() {
        let program = program(false).unwrap();
        let answer_to = |call, first: i32| {
            let arguments = [u64::from(first.cast_unsigned()), 0, 0, 0, 0, 0];
            run(&program, AUDIT_ARCH_X86_64, number(call).unwrap(), arguments).0
        };
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            assert_eq!(answer_to(call, libc::AF_UNIX), ALLOW);
            for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK] {
                assert_eq!(answer_to(call, family), error(libc::EAFNOSUPPORT));
            }
        }
        assert_eq!(answer_to(libc::SYS_clone, libc::CLONE_THREAD | libc::CLONE_VM), ALLOW);
        assert_eq!(answer_to(libc::SYS_clone, libc::SIGCHLD), error(libc::EPERM));
    }

    #[test]
    fn other_tables_do_not_exist() {
        let program = program(true).unwrap();
        let read = number(libc::SYS_read).unwrap();
        assert_eq!(run(&program, AUDIT_ARCH_X86_64, X32 | read, [0; 6]).0, error(libc::ENOSYS));
        // i386 (AUDIT_ARCH_I386).
        assert_eq!(run(&program, 0x4000_0003, read, [0; 6]).0, error(libc::ENOSYS));
    }
}
