//! One system call in a program that has just been executed, before its first instruction: the program gets a
//! `userfaultfd(2)` of its own memory, which nobody can make for it and which does not outlive an `execve`.
//!
//! Everything here happens before the program has read a byte of anybody's: its memory is what the kernel put there.

use std::io;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// Said by the child before it executes the program, if it could not be made to stop there.
pub(crate) const UNTRACED: &str = "untraced\n";

/// Makes the calling process stop when it has executed a program.
pub(crate) fn stop_at_execution() -> nix::Result<()> {
    // The stop is a signal, and what blocks signals may be inherited from whoever started the server.
    let mut trap = SigSet::empty();
    trap.add(Signal::SIGTRAP);
    trap.thread_unblock()?;
    ptrace::traceme()
}

/// Waits until `pid` has stopped at its program's beginning, has it make the descriptor and lets it go on. One that has
/// ended instead is left to be waited for.
///
/// # Errors
/// If it has ended, or could not be put back into the state it was in; it must not run then. A kernel that does not let it
/// be changed, or refuses it the descriptor, is no error.
pub(crate) fn go_on_with_descriptor(pid: Pid) -> io::Result<()> {
    await_stop(pid)?;
    // If this process ends in the middle, it does not run on with an instruction that is not its own.
    ptrace::setoptions(pid, Options::PTRACE_O_EXITKILL)?;
    make_descriptor(pid)?;
    Ok(ptrace::detach(pid, None)?)
}

fn await_stop(pid: Pid) -> io::Result<()> {
    let kinds = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED;
    // Looked at first: the number of one that has ended is its own only until it has been waited for.
    if let WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) =
        waitid(Id::Pid(pid), kinds | WaitPidFlag::WNOWAIT)?
        && waitpid(pid, None)? == WaitStatus::Stopped(pid, Signal::SIGTRAP)
    {
        return Ok(());
    }
    Err(io::Error::other("it ended at its beginning"))
}

#[cfg(target_arch = "x86_64")]
fn make_descriptor(pid: Pid) -> io::Result<()> {
    /// `syscall`, as the lowest bytes of a word.
    const SYSCALL: i64 = 0x050f;
    /// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h: allowed to everybody.
    const USER_MODE_ONLY: i32 = 1;
    let Ok(before) = ptrace::getregs(pid) else { return Ok(()) };
    let at = std::ptr::with_exposed_provenance_mut(usize::try_from(before.rip).map_err(io::Error::other)?);
    let Ok(word) = ptrace::read(pid, at) else { return Ok(()) };
    let mut call = before;
    call.rax = libc::SYS_userfaultfd.unsigned_abs();
    call.rdi = u64::from((libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY).unsigned_abs());
    // No system call is to be restarted.
    call.orig_rax = u64::MAX;
    if ptrace::write(pid, at, (word & !0xffff) | SYSCALL).is_err() {
        // A kernel that protects programs from this. Nothing has changed.
        return Ok(());
    }
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
