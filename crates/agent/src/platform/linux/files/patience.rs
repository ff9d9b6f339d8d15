//! Lets a helper thread wait its turn.
#![allow(unsafe_code)]

/// While this lives the calling thread interrupts no other when it has something to do. On one processor, a thread that
/// writes what another receives would else take its place for every frame.
pub(super) struct Patience(());

impl Patience {
    pub(super) fn begin() -> Self {
        set(libc::SCHED_BATCH);
        Self(())
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        // The thread is used again for other work.
        set(libc::SCHED_OTHER);
    }
}

fn set(policy: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: a system call for the calling thread; the structure outlives it. Refused, all goes on as before.
    // Needed: neither the standard library nor `rustix` sets how a thread is scheduled.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}
