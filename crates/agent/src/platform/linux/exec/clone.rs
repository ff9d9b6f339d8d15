//! `clone3` for a child that shares our memory: born in its control group, with no handler of ours left.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;

use rustix::io::Errno;

/// `struct clone_args` of `linux/sched.h`; zero means "not given".
#[cfg(target_arch = "x86_64")]
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// From `linux/sched.h`; they do not fit the `c_int` of the C library.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts `function(argument)` in a child that shares our memory, on `stack`, while the calling thread stands still until
/// the child executes another program or ends. Signal handlers are gone in the child, ignored signals stay ignored. With
/// `control_group`, the directory of one, it is a member from its first instruction: to move it there later costs an
/// emulated guest 0.5 ms.
///
/// Fails on kernels before 5.7, where the group is full or not ours, and on other processors than x86-64: then the
/// caller does it the old way.
///
/// # Safety
/// `function` must not return, and make nothing but plain system calls; `argument` must be valid for it.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn clone(
    function: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    stack: &mut [u128],
    control_group: Option<RawFd>,
) -> Result<u32, Errno> {
    let shared = (libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned();
    let mut arguments = Arguments {
        flags: u64::from(shared) | CLEAR_SIGHAND,
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        stack: stack.as_mut_ptr().expose_provenance() as u64,
        stack_size: size_of_val(stack) as u64,
        ..Arguments::default()
    };
    if let Some(directory) = control_group {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(directory.unsigned_abs());
    }
    let result: i64;
    // SAFETY: the child begins behind `syscall` with our registers and the stack given, whose end is aligned for a call,
    // and leaves this code for ever; the parent goes on when the child is gone from our memory, all registers kept but
    // those named.
    // Needed: no library wraps `clone3`, and a plain call would return in the child on a stack that is not its caller's.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut arguments,
            in("rsi") size_of::<Arguments>(),
            in("r12") argument,
            in("r13") function,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    u32::try_from(result)
        .map_err(|_| Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)))
}

/// As above: never on this processor.
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn clone(
    _: extern "C" fn(*mut c_void) -> c_int,
    _: *mut c_void,
    _: &mut [u128],
    _: Option<RawFd>,
) -> Result<u32, Errno> {
    Err(Errno::NOSYS)
}
