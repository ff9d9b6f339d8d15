//! What happens to VMs, for those who watch.

use microvm_types::{Name, Phase, VmId};

/// A VM changed its phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEvent {
    /// Which VM.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Its new phase; [`Phase::Deleted`] is the last one.
    pub phase: Phase,
    /// Why, where there is a reason to tell.
    pub reason: Option<String>,
    /// When, in milliseconds since 1970-01-01T00:00:00Z.
    pub at_ms: i64,
}
