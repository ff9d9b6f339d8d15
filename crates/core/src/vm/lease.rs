//! Access to a running guest.

use std::ops::Deref;
use std::sync::Arc;

use microvm_ports::{Clock, Guest};
use microvm_types::VmId;
use microvm_types::vm::VmRecord;

use super::activity::Activity;

/// A VM in use, whether its guest can be reached or not.
pub(crate) struct UseGuard {
    activity: Arc<Activity>,
    clock: Arc<dyn Clock>,
}

impl UseGuard {
    pub(crate) fn begin(activity: &Arc<Activity>, clock: &Arc<dyn Clock>) -> Self {
        activity.begin();
        Self { activity: Arc::clone(activity), clock: Arc::clone(clock) }
    }
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        self.activity.end(self.clock.now_ms());
    }
}

/// One machine of a VM: the same while it runs, whichever channel leads to its guest, and another one after each start, wake and return
/// to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Boot {
    vm: VmId,
    started_ms: Option<i64>,
}

impl Boot {
    pub(crate) fn of(record: &VmRecord) -> Self {
        Self { vm: record.id.clone(), started_ms: record.started_ms }
    }
}

/// A running guest in use: as long as this lives the VM does not count as idle.
pub struct GuestLease {
    guest: Arc<dyn Guest>,
    boot: Boot,
    activity: Arc<Activity>,
    clock: Arc<dyn Clock>,
}

impl GuestLease {
    pub(crate) fn new(
        guest: Arc<dyn Guest>,
        boot: Boot,
        activity: Arc<Activity>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        activity.begin();
        Self { guest, boot, activity, clock }
    }

    /// The machine that the guest is in.
    #[must_use]
    pub const fn boot(&self) -> &Boot {
        &self.boot
    }
}

impl Deref for GuestLease {
    type Target = dyn Guest;
    fn deref(&self) -> &Self::Target {
        &*self.guest
    }
}

impl Drop for GuestLease {
    fn drop(&mut self) {
        self.activity.end(self.clock.now_ms());
    }
}

impl std::fmt::Debug for GuestLease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("GuestLease")
    }
}
