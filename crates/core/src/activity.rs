//! Whether somebody works with a VM: for idle limits.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the leases of one VM and remembers the last use.
#[derive(Debug)]
pub(crate) struct Activity {
    leases: AtomicUsize,
    last_ms: AtomicI64,
    changed: Notify,
}

impl Activity {
    pub(crate) fn new(now_ms: i64) -> Self {
        Self { leases: AtomicUsize::new(0), last_ms: AtomicI64::new(now_ms), changed: Notify::new() }
    }

    pub(crate) fn begin(&self) {
        self.leases.fetch_add(1, Ordering::AcqRel);
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

    /// Since when nobody has used the VM, in milliseconds of the wall clock; `None` while somebody does.
    pub(crate) fn idle_since_ms(&self) -> Option<i64> {
        (self.leases.load(Ordering::Acquire) == 0).then(|| self.last_ms.load(Ordering::Acquire))
    }

    /// Waits until nobody uses the VM; tells since when, in milliseconds of the wall clock. Any number may wait.
    pub(crate) async fn idle(&self) -> i64 {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listened to before it is looked at: an end in between is not missed.
            changed.as_mut().enable();
            if let Some(since) = self.idle_since_ms() {
                return since;
            }
            changed.await;
        }
    }
}
