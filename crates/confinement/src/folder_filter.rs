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

/// Set-user-id and set-group-id (inode(7)).
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
/// Bits of a file type that regular files (0o100000) do not have and every other type has (inode(7)).
const SPECIAL: u32 = 0o070_000;
/// Of linux/seccomp.h: a call is answered with an error number without being carried out; 0 is success.
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// AUDIT_ARCH_X86_64 of linux/audit.h: 64 bit, little endian, EM_X86_64.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are the x32 table's (asm/unistd.h).
const X32: u32 = 0x4000_0000;
/// Not in the libc crate: Linux 6.6.
const SYS_FCHMODAT2: c_long = 452;

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
#[allow(unsafe_code)]
pub(crate) fn install() -> io::Result<()> {
    let mut program = program()?;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to a live program of the length it names; the kernel copies it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn program() -> io::Result<Vec<sock_filter>> {
    // Offsets in struct seccomp_data (linux/seccomp.h): nr 0, arch 4, args[i] at 16 + 8 × i (low half first).
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), offset);
    let jump = |kind, skip, value| instruction(libc::BPF_JMP | kind | libc::BPF_K, skip, value);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, (0, 0), action);
    let refuse = |error: i32| answer(REFUSE | error.cast_unsigned());
    let number = |call: c_long| u32::try_from(call).map_err(io::Error::other);
    let mut program = vec![
        load(4),
        jump(libc::BPF_JEQ, (1, 0), AUDIT_ARCH_X86_64),
        refuse(libc::ENOSYS),
        load(0),
        jump(libc::BPF_JGE, (0, 1), X32),
        refuse(libc::ENOSYS),
    ];
    for call in HIDDEN {
        program.push(jump(libc::BPF_JEQ, (0, 1), number(call)?));
        program.push(refuse(libc::ENOSYS));
    }
    for call in SOCKETS {
        program.push(jump(libc::BPF_JEQ, (0, 1), number(call)?));
        program.push(refuse(libc::EPERM));
    }
    for (call, argument) in SPECIAL_MAKES {
        program.extend([
            jump(libc::BPF_JEQ, (0, 4), number(call)?),
            load(16 + 8 * argument),
            jump(libc::BPF_JSET, (0, 1), SPECIAL),
            refuse(libc::EPERM),
            // Back to the number, for the bits below.
            load(0),
        ]);
    }
    let changes = CHANGES.iter().map(|call| (call, 0));
    for ((call, argument), group_error) in changes.chain(MAKES.iter().map(|call| (call, libc::EPERM))) {
        program.extend([
            jump(libc::BPF_JEQ, (0, 6), number(*call)?),
            load(16 + 8 * argument),
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

fn instruction(code: u32, (jump_true, jump_false): (u8, u8), value: u32) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "BPF codes are below 256 (linux/bpf_common.h)")]
    sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program (linux/bpf_common.h), for the few instructions that it has.
    fn run(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [call.to_le_bytes(), architecture.to_le_bytes()].concat();
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            let jump = match u32::from(now.code) {
                0x20 => {
                    let from = usize::try_from(now.k).unwrap();
                    accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                    continue;
                }
                0x06 => return now.k,
                0x15 => accumulator == now.k,
                0x35 => accumulator >= now.k,
                0x45 => accumulator & now.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if jump { now.jt } else { now.jf });
        }
    }

    fn answer_to(call: c_long, argument: u32, value: u64) -> u32 {
        let mut arguments = [0o7777 << 32; 6];
        arguments[usize::try_from(argument).unwrap()] = value;
        run(&program().unwrap(), AUDIT_ARCH_X86_64, u32::try_from(call).unwrap(), arguments)
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
        assert_eq!(run(&program, AUDIT_ARCH_X86_64, X32 | chmod, [0; 6]), missing);
        // i386 (AUDIT_ARCH_I386), where 15 is chmod.
        assert_eq!(run(&program, 0x4000_0003, 15, [0; 6]), missing);
        assert_eq!(answer_to(libc::SYS_read, 0, 0), ALLOW);
    }
}
