//! Uses of a VM: for idle limits.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the leases of one VM and remembers the last use.
#[derive(Debug)]
pub(crate) struct Activity {
    leases: AtomicUsize,
    /// Leases ever begun.
    begun: AtomicU64,
    last_ms: AtomicI64,
    changed: Notify,
}

impl Activity {
    pub(crate) fn new(now_ms: i64) -> Self {
        Self {
            leases: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            last_ms: AtomicI64::new(now_ms),
            changed: Notify::new(),
        }
    }

    pub(crate) fn begin(&self) {
        self.leases.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// Number of uses ever begun. Nobody has used the VM between two moments of one number without leases.
    pub(crate) fn uses(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self, now_ms: i64) {
        self.last_ms.store(now_ms, Ordering::Release);
        self.leases.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Counts as use at this moment: a VM that has just started has not been idle.
    pub(crate) fn touch(&self, now_ms: i64) {
        self.last_ms.store(now_ms, Ordering::Release);
    }

    /// Begin of the idle time, in milliseconds of the wall clock; `None` while somebody uses the VM.
    pub(crate) fn idle_since_ms(&self) -> Option<i64> {
        (self.leases.load(Ordering::Acquire) == 0).then(|| self.last_ms.load(Ordering::Acquire))
    }

    /// The last use, which was not later than now: the clock may have been set back since.
    pub(crate) fn idle_at_most_since(&self, now_ms: i64) -> i64 {
        self.last_ms.fetch_min(now_ms, Ordering::AcqRel).min(now_ms)
    }

    /// Waits until nobody uses the VM. Any number may wait.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listened to before it is looked at: an end in between is not missed.
            changed.as_mut().enable();
            if self.idle_since_ms().is_some() {
                return;
            }
            changed.await;
        }
    }
}
