//! Limits of VMs that their creator deletes.

use microvm_types::vm::Limits;

/// Seconds without use after which a temporary VM deletes itself.
pub(crate) const IDLE_NET: u64 = 300;

/// Limits of a VM that its creator deletes: it deletes itself after 300 seconds without use, in case the creator was killed
/// before.
#[must_use]
pub fn temporary() -> Limits {
    Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() }
}
