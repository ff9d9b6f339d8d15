//! Programs of seccomp filters: their instructions, and installing them. They see a system call's number and arguments in
//! registers, never memory, so there is no race to win (seccomp(2)).

use std::io;

use libc::{c_long, c_uint, sock_filter};

/// AUDIT_ARCH_X86_64 of linux/audit.h: 64 bit, little endian, EM_X86_64.
pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are the x32 table's (asm/unistd.h).
pub(crate) const X32: u32 = 0x4000_0000;
/// Not in every version of the libc crate: Linux 6.6.
pub(crate) const SYS_FCHMODAT2: c_long = 452;
/// Offsets in `struct seccomp_data` (linux/seccomp.h).
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCHITECTURE: u32 = 4;

/// Offset of the low half of an argument, 0 to 5, in `struct seccomp_data`.
pub(crate) const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Loads the word at an offset of `struct seccomp_data`.
pub(crate) fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), offset)
}

/// Keeps the bits of the loaded word that are in `mask`.
pub(crate) fn mask(mask: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, (0, 0), mask)
}

/// Compares the loaded word; `kind` is `BPF_JEQ` and its kin, `skip` what is passed over if it holds and if it does not.
pub(crate) fn jump(kind: u32, skip: (u8, u8), value: u32) -> sock_filter {
    instruction(libc::BPF_JMP | kind | libc::BPF_K, skip, value)
}

/// Ends the program with an action.
pub(crate) fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, (0, 0), action)
}

/// Ends the program: the call happens.
pub(crate) fn allow() -> sock_filter {
    answer(libc::SECCOMP_RET_ALLOW)
}

/// Ends the program: the call does not happen and returns this error; 0 is success.
pub(crate) fn refuse(error: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | error.cast_unsigned())
}

/// The number of a call as filters see it.
pub(crate) fn number(call: c_long) -> io::Result<u32> {
    u32::try_from(call).map_err(io::Error::other)
}

/// Calls of other tables do not exist; leaves the number loaded.
pub(crate) fn this_table_only() -> [sock_filter; 6] {
    [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, (1, 0), AUDIT_ARCH_X86_64),
        refuse(libc::ENOSYS),
        load(NUMBER),
        jump(libc::BPF_JGE, (0, 1), X32),
        refuse(libc::ENOSYS),
    ]
}

fn instruction(code: u32, (jump_true, jump_false): (u8, u8), value: u32) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "BPF codes are below 256 (linux/bpf_common.h)")]
    sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}

/// Installs a filter in this process, which needs no-new-privileges. `flags`: those of seccomp(2). Returns what the kernel
/// answers: a descriptor where a listener was asked for.
#[allow(unsafe_code)]
pub(crate) fn install(program: &mut [sock_filter], flags: libc::c_ulong) -> io::Result<c_long> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let mode: c_uint = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `filter` points to a live program of the length it names; the kernel copies it.
    // Needed: neither `nix` nor `rustix` installs filters.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Verdict of the kernel on a program (linux/bpf_common.h), and the number of steps to it.
#[cfg(test)]
pub(crate) fn run(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> (u32, u32) {
    let mut data = [call.to_le_bytes(), architecture.to_le_bytes()].concat();
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let now = program[at];
        at += 1;
        steps += 1;
        let jump = match u32::from(now.code) {
            0x20 => {
                let from = usize::try_from(now.k).unwrap();
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                accumulator &= now.k;
                continue;
            }
            0x06 => return (now.k, steps),
            0x15 => accumulator == now.k,
            0x35 => accumulator >= now.k,
            0x45 => accumulator & now.k != 0,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if jump { now.jt } else { now.jf });
    }
}
