//! Giving memory that a server no longer uses back to its host.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Interval between checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Free memory that the heap may keep, in bytes: what a request or two need.
const KEPT: usize = 2 << 20;

/// Gives freed memory back, for as long as the future is polled. The C library keeps what was freed below the last byte
/// in use, and a server that once had two hundred requests at a time would look large for ever.
pub(crate) async fn keep_small() -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Nothing tells of freed memory, so it is asked for: some 10 µs each time.
    loop {
        ticks.tick().await;
        // It walks the heap under its locks, some milliseconds for hundreds of MiB: not on a thread that serves.
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn trim() {
    /// Bytes free after the last check. Chunks between used ones stay counted although their pages are returned.
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: only looks at the heap's own books, under its locks.
    // Needed: nothing safe asks the C library how much of its heap is free.
    let free = || unsafe { libc::mallinfo2() }.fordblks;
    let now = free();
    if now > LEFT.load(Ordering::Relaxed).saturating_add(KEPT) {
        // SAFETY: changes nothing that is in use.
        // Needed: nothing safe makes the C library give pages back.
        unsafe { libc::malloc_trim(0) };
        LEFT.store(free(), Ordering::Relaxed);
    } else {
        LEFT.fetch_min(now, Ordering::Relaxed);
    }
}

/// Other C libraries give it back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Few heaps instead of eight per processor: each keeps its own rest.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(crate) fn limit_arenas() {
    /// Number of heaps for threads that allocate concurrently.
    const ARENAS: libc::c_int = 2;
    // SAFETY: sets a number, before other threads are started.
    // Needed: the C library has a variable for it as well (MALLOC_ARENA_MAX), but reads that before `main`.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// There are no arenas to limit.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn limit_arenas() {}
