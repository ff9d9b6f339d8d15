//! Remedies in the bodies of problems. [`crate::remedy`] makes them of what the engine recommends.

use microvm_types::remedy::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A remedy for a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Advice {
    /// Stable word for programs.
    pub action: Action,
    /// Name of the VM, image, snapshot, template or pool, where the problem knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Request that does it, for example `GET /api/v1/vms`; segments in braces are to be filled in. Absent if no single
    /// request does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}
