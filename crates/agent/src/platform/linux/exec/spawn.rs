//! Starts a program the cheap way: `clone` with shared memory, so that nothing of the agent is copied.
//!
//! The child runs on a stack of its own in the agent's memory while the calling thread stands still, until it has
//! executed the program or failed; a failure is left in shared memory. Between `clone` and `execve` only plain system
//! calls are made: no allocation, no locks, no library that keeps state.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::RawFd;

use rustix::io::Errno;

use super::clone;

/// Everything the child needs, prepared so that it only has to make system calls.
pub(in crate::platform::linux) struct SpawnPlan<'a> {
    pub(in crate::platform::linux) candidates: &'a [CString],
    pub(in crate::platform::linux) arguments: &'a [CString],
    pub(in crate::platform::linux) environment: &'a [CString],
    /// Working directories to try, in order: the first that can be entered.
    pub(in crate::platform::linux) directories: &'a [CString],
    /// The first directory is left for the next only if it may not be entered.
    pub(in crate::platform::linux) insists: bool,
    /// User, group and further groups; `None`: as the agent itself.
    pub(in crate::platform::linux) identity: Option<(u32, u32, &'a [u32])>,
    pub(in crate::platform::linux) stdio: [RawFd; 3],
    /// `stdio[0]` becomes the controlling terminal.
    pub(in crate::platform::linux) terminal: bool,
    /// The agent is shielded from the out-of-memory killer by a score, which programs must not inherit.
    pub(in crate::platform::linux) shielded: bool,
    /// Directory of the control group to join.
    pub(in crate::platform::linux) control_group: Option<RawFd>,
}

/// Step at which a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::platform::linux) enum SpawnStep {
    Clone,
    Session,
    Streams,
    Terminal,
    Identity,
    Directory,
    Execute,
}

const STACK_SIZE: usize = 64 * 1024;

struct Child<'a> {
    plan: &'a SpawnPlan<'a>,
    candidates: &'a [*const c_char],
    arguments: *const *const c_char,
    /// `/bin/sh`, room for the path of a script, its arguments.
    script_arguments: *mut *const c_char,
    environment: *const *const c_char,
    /// It begins in its control group, and without our signal handlers.
    born_ready: bool,
    failure: Option<(SpawnStep, i32)>,
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Starts the program and returns its process number. Blocks until it runs or has failed: not for the runtime's thread.
pub(in crate::platform::linux) fn spawn(plan: &SpawnPlan<'_>) -> Result<u32, (SpawnStep, Errno)> {
    let candidates = pointers(plan.candidates);
    let arguments = pointers(plan.arguments);
    let environment = pointers(plan.environment);
    let mut script_arguments = vec![c"/bin/sh".as_ptr(), std::ptr::null()];
    script_arguments.extend(arguments.iter().skip(1));
    let mut child = Child {
        plan,
        candidates: &candidates[..plan.candidates.len()],
        arguments: arguments.as_ptr(),
        script_arguments: script_arguments.as_mut_ptr(),
        environment: environment.as_ptr(),
        born_ready: true,
        failure: None,
    };
    let mut stack = vec![0u128; STACK_SIZE / 16];
    // SAFETY: all-zero signal sets are valid, and both outlive the calls that fill them.
    // Needed: neither the standard library nor `rustix` has safe signal masks.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the sets are local. With every signal blocked no handler of the agent can run in the child.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    // SAFETY: the stack is ours, grows down from its aligned end, and CLONE_VFORK keeps this thread, and with it
    // everything `child` points to, in place until the child has executed another program or ended.
    let result = unsafe {
        let argument = (&raw mut child).cast();
        let result = clone::clone(run_child, argument, &mut stack, plan.control_group).or_else(|_| {
            // An older kernel; or a full group, which can still be joined later.
            child.born_ready = false;
            let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let result = libc::clone(run_child, top, flags, (&raw mut child).cast());
            let error = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
            u32::try_from(result).map_err(|_| (SpawnStep::Clone, error))
        });
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    };
    match (result, child.failure) {
        // The child has ended itself; the reaper collects it and finds that nobody asks for it.
        (Ok(_), Some((step, error))) => Err((step, Errno::from_raw_os_error(error))),
        (result, _) => result,
    }
}

extern "C" fn run_child(child: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Child`, which it does not touch while the child runs.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    // SAFETY: as said above, the parent stands still, and all pointers in `child` are valid and NUL-terminated.
    let (step, error) = unsafe { become_program(child) };
    child.failure = Some((step, error));
    // SAFETY: ends the child without running anything of the agent's.
    // Needed: `std::process::exit` runs handlers and flushes buffers, which are the parent's.
    unsafe { libc::_exit(127) }
}

fn last_error() -> i32 {
    // SAFETY: the location of this thread's error number; the parent, which shares it, stands still.
    unsafe { *libc::__errno_location() }
}

/// # Safety
/// To be called where no handler of this process is needed any more.
unsafe fn reset_signals() {
    for signal in 1..=64 {
        // 32 and 33 belong to the C library.
        if signal != libc::SIGKILL && signal != libc::SIGSTOP && signal != 32 && signal != 33 {
            // SAFETY: a plain system call; the default action runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Returns only on failure.
///
/// # Safety
/// To be called in a child of `clone` with `CLONE_VM | CLONE_VFORK`, with a whole [`Child`].
unsafe fn become_program(child: &mut Child<'_>) -> (SpawnStep, i32) {
    let plan = child.plan;
    // SAFETY: plain system calls on values prepared by the parent. Raw `syscall` for the identity, because the C
    // library's wrappers would change every thread of the process whose memory this is.
    unsafe {
        if child.born_ready {
            // The one signal that a Rust program ignores. PID 1 begins with no other.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        } else {
            reset_signals();
        }
        // A session of its own: it can be signalled as a group, and take a terminal.
        if libc::setsid() < 0 {
            return (SpawnStep::Session, last_error());
        }
        if let Some(group) = plan.control_group.filter(|_| !child.born_ready) {
            // Best effort, as for every older kernel: without its group a command is ended by its session.
            let members = libc::openat(group, c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(members, c"0".as_ptr().cast(), 1);
            libc::close(members);
        }
        if plan.shielded {
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
        for (target, source) in (0..).zip(plan.stdio) {
            if libc::dup2(source, target) < 0 {
                return (SpawnStep::Streams, last_error());
            }
        }
        if plan.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (SpawnStep::Terminal, last_error());
        }
        if let Some((uid, gid, groups)) = plan.identity {
            let failed = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0;
            if failed {
                return (SpawnStep::Identity, last_error());
            }
        }
        let mut refused = None;
        for directory in plan.directories {
            if libc::chdir(directory.as_ptr()) == 0 {
                refused = None;
                break;
            }
            let error = last_error();
            if plan.insists && refused.is_none() && error != libc::EACCES {
                return (SpawnStep::Directory, error);
            }
            // Why the first was refused is what is told.
            refused = refused.or(Some(error));
        }
        if let Some(error) = refused {
            return (SpawnStep::Directory, error);
        }
        // The agent's own umask, that of PID 1, is not for programs.
        libc::umask(0o022);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut denied = None;
        let mut error = libc::ENOENT;
        for &candidate in child.candidates {
            libc::execve(candidate, child.arguments, child.environment);
            error = last_error();
            // A script without `#!` is run by the shell, as execvp(3) does.
            if error == libc::ENOEXEC {
                *child.script_arguments.add(1) = candidate;
                libc::execve(c"/bin/sh".as_ptr(), child.script_arguments.cast_const(), child.environment);
                break;
            }
            match error {
                // A later directory of the path may have one that can be run; if none has, this is the error to tell.
                libc::EACCES => denied = Some(error),
                libc::ENOENT | libc::ENOTDIR => {}
                _ => break,
            }
        }
        (SpawnStep::Execute, denied.unwrap_or(error))
    }
}
