//! Access to a running guest.

use std::ops::Deref;
use std::sync::Arc;

use microvm_ports::{Clock, Guest};

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

/// A running guest in use: as long as this lives the VM does not count as idle.
pub struct GuestLease {
    guest: Arc<dyn Guest>,
    activity: Arc<Activity>,
    clock: Arc<dyn Clock>,
}

impl GuestLease {
    pub(crate) fn new(guest: Arc<dyn Guest>, activity: Arc<Activity>, clock: Arc<dyn Clock>) -> Self {
        activity.begin();
        Self { guest, activity, clock }
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
