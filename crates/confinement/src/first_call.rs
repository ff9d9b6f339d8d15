//! One system call in a program that has just been executed, before its first instruction: the program gets a
//! `userfaultfd(2)` of its own memory, which nobody can make for it and which does not outlive an `execve`.
//!
//! Everything here happens before the program has read a byte of anybody's: its memory is what the kernel put there.

use std::io;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Said by the child before it executes the program, if it could not be made to stop there.
pub(crate) const UNTRACED: &str = "untraced\n";

/// Makes the calling process stop when it has executed a program.
pub(crate) fn stop_at_execution() -> nix::Result<()> {
    ptrace::traceme()
}

/// Waits until `pid` has stopped at its program's beginning, has it make the descriptor and lets it go on. A
/// kernel that refuses the call is no error.
pub(crate) fn go_on_with_descriptor(pid: Pid) -> io::Result<()> {
    await_stop(pid)?;
    let made = make_descriptor(pid);
    ptrace::detach(pid, None)?;
    made
}

fn await_stop(pid: Pid) -> io::Result<()> {
    match waitpid(pid, None)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(()),
        other => Err(io::Error::other(format!("it did not stop at its beginning: {other:?}"))),
    }
}

#[cfg(target_arch = "x86_64")]
fn make_descriptor(pid: Pid) -> io::Result<()> {
    /// `syscall`, as the lowest bytes of a word.
    const SYSCALL: i64 = 0x050f;
    /// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h: allowed to everybody.
    const USER_MODE_ONLY: i32 = 1;
    let before = ptrace::getregs(pid)?;
    let at = std::ptr::with_exposed_provenance_mut(usize::try_from(before.rip).map_err(io::Error::other)?);
    let word = ptrace::read(pid, at)?;
    let mut call = before;
    call.rax = libc::SYS_userfaultfd.unsigned_abs();
    call.rdi = u64::from((libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY).unsigned_abs());
    // No system call is to be restarted.
    call.orig_rax = u64::MAX;
    ptrace::write(pid, at, (word & !0xffff) | SYSCALL)?;
    ptrace::setregs(pid, call)?;
    ptrace::step(pid, None)?;
    await_stop(pid)?;
    // Its result does not matter: without a descriptor the server finds none.
    ptrace::write(pid, at, word)?;
    Ok(ptrace::setregs(pid, before)?)
}

#[cfg(not(target_arch = "x86_64"))]
fn make_descriptor(_: Pid) -> io::Result<()> {
    Ok(())
}
