//! Keeps a program that may write to somebody's folder from leaving there what gives its rights to others.
//!
//! What the program makes belongs to the folder's owner, who may be root. A file with the set-user-id bit would run as that
//! owner, and the host's own mount of the folder need not forbid it. So the bits cannot be set at all: a seccomp filter
//! looks at every system call that takes a mode. It reads numbers in registers only, so there is no race to win.
//!
//! | call | set-user-id | set-group-id alone |
//! |---|---|---|
//! | `chmod` and its kin | EPERM | done without doing it, as POSIX allows: a guest's `mkdir` in a folder with the bit asks for it, and the kernel has passed it on to the new folder already |
//! | `open`, `mknod` and their kin | EPERM | EPERM |
//!
//! The same filter keeps it from making pipes, sockets and devices there, on which a program of the host would hang, and from
//! connecting to sockets that lie there, behind which is a program of the host (also in a read-only folder).
//!
//! What could get around it is not there: `openat2` and `io_uring` (which take modes from memory), and other system call
//! tables.

use std::io;

use libc::{c_long, sock_filter};

use crate::filters::bpf::{self, SYS_FCHMODAT2, answer, argument, jump, load, number, refuse};

/// Set-user-id and set-group-id (inode(7)).
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
/// Bits of a file type that regular files (0o100000) do not have and every other type has (inode(7)).
const SPECIAL: u32 = 0o070_000;
/// Of linux/seccomp.h.
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// Calls that change a mode, and which argument it is.
const CHANGES: [(c_long, u32); 4] =
    [(libc::SYS_chmod, 1), (libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (SYS_FCHMODAT2, 2)];
/// Calls that make something with a mode; the kernel ignores the bits for new directories.
const MAKES: [(c_long, u32); 5] = [
    (libc::SYS_open, 2),
    (libc::SYS_openat, 3),
    (libc::SYS_creat, 1),
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];
/// Calls that make files of any type, and which argument has the type.
const SPECIAL_MAKES: [(c_long, u32); 2] = [(libc::SYS_mknod, 1), (libc::SYS_mknodat, 2)];
/// Calls by which a program reaches sockets that it was not handed: to connect to one that lies in a folder takes no more
/// than write permission, also where the mount is read-only.
const SOCKETS: [c_long; 3] = [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect];
/// Calls whose arguments cannot be seen.
const HIDDEN: [c_long; 2] = [libc::SYS_openat2, libc::SYS_io_uring_setup];

/// Installs the filter in this process. Needs no-new-privileges.
pub(crate) fn install() -> io::Result<()> {
    bpf::install(&mut program()?, 0).map(|_| ())
}

fn program() -> io::Result<Vec<sock_filter>> {
    let mut program = bpf::this_table_only().to_vec();
    for call in HIDDEN {
        program.push(jump(libc::BPF_JEQ, (0, 1), number(call)?));
        program.push(refuse(libc::ENOSYS));
    }
    for call in SOCKETS {
        program.push(jump(libc::BPF_JEQ, (0, 1), number(call)?));
        program.push(refuse(libc::EPERM));
    }
    for (call, index) in SPECIAL_MAKES {
        program.extend([
            jump(libc::BPF_JEQ, (0, 4), number(call)?),
            load(argument(index)),
            jump(libc::BPF_JSET, (0, 1), SPECIAL),
            refuse(libc::EPERM),
            // Back to the number, for the bits below.
            load(bpf::NUMBER),
        ]);
    }
    let changes = CHANGES.iter().map(|call| (call, 0));
    for ((call, index), group_error) in changes.chain(MAKES.iter().map(|call| (call, libc::EPERM))) {
        program.extend([
            jump(libc::BPF_JEQ, (0, 6), number(*call)?),
            load(argument(*index)),
            jump(libc::BPF_JSET, (0, 1), SET_USER),
            refuse(libc::EPERM),
            jump(libc::BPF_JSET, (0, 1), SET_GROUP),
            refuse(group_error),
            answer(ALLOW),
        ]);
    }
    program.push(answer(ALLOW));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::bpf::{AUDIT_ARCH_X86_64, X32, run};

    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO;

    fn answer_to(call: c_long, argument: u32, value: u64) -> u32 {
        let mut arguments = [0o7777 << 32; 6];
        arguments[usize::try_from(argument).unwrap()] = value;
        run(&program().unwrap(), AUDIT_ARCH_X86_64, u32::try_from(call).unwrap(), arguments).0
    }

    #[test]
    fn the_bits_cannot_be_set_by_any_call() {
        let refused = REFUSE | libc::EPERM.cast_unsigned();
        for (call, argument) in CHANGES.into_iter().chain(MAKES) {
            for mode in [0o4755, 0o6755, 0o4000] {
                assert_eq!(answer_to(call, argument, mode), refused, "{call} {mode:o}");
            }
            for mode in [0, 0o755, 0o1777, 0o100_644] {
                assert_eq!(answer_to(call, argument, mode), ALLOW, "{call} {mode:o}");
            }
        }
        for (call, argument) in CHANGES {
            assert_eq!(answer_to(call, argument, 0o2755), REFUSE, "{call}");
        }
        for (call, argument) in MAKES {
            assert_eq!(answer_to(call, argument, 0o2755), refused, "{call}");
        }
    }

    #[test]
    fn only_regular_files_are_made_and_no_socket_is_reached() {
        let refused = REFUSE | libc::EPERM.cast_unsigned();
        for (call, argument) in SPECIAL_MAKES {
            for kind in [libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFSOCK] {
                assert_eq!(answer_to(call, argument, u64::from(kind | 0o644)), refused, "{call} {kind:o}");
            }
            for kind in [0, libc::S_IFREG] {
                assert_eq!(answer_to(call, argument, u64::from(kind | 0o644)), ALLOW, "{call} {kind:o}");
            }
        }
        for call in SOCKETS {
            assert_eq!(answer_to(call, 0, 0), refused, "{call}");
        }
        assert_eq!(answer_to(libc::SYS_accept4, 0, 0), ALLOW);
    }

    #[test]
    fn nothing_gets_around_it() {
        let missing = REFUSE | libc::ENOSYS.cast_unsigned();
        for call in HIDDEN {
            assert_eq!(answer_to(call, 0, 0), missing);
        }
        let program = program().unwrap();
        let chmod = u32::try_from(libc::SYS_chmod).unwrap();
        assert_eq!(run(&program, AUDIT_ARCH_X86_64, X32 | chmod, [0; 6]).0, missing);
        // i386 (AUDIT_ARCH_I386), where 15 is chmod.
        assert_eq!(run(&program, 0x4000_0003, 15, [0; 6]).0, missing);
        assert_eq!(answer_to(libc::SYS_read, 0, 0), ALLOW);
    }
}
