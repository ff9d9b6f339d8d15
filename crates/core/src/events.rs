//! What happens to VMs, for those who watch.

use microvm_types::{Name, Phase, VmId};
use serde::{Deserialize, Serialize};

/// A VM changed its phase, or is gone (`phase` is then `None`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEvent {
    /// Which VM.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Its new phase; `None`: it is gone.
    pub phase: Option<Phase>,
    /// Why, where there is a reason to tell.
    pub reason: Option<String>,
    /// When, in milliseconds since 1970-01-01T00:00:00Z.
    pub at_ms: i64,
}
