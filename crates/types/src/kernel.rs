//! Kernels as everybody speaks of them.

use serde::{Deserialize, Serialize};

/// Source from which a kernel learns where its virtio-mmio devices are: a property of its configuration, which the user
/// states when a kernel is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Discovery))]
pub enum DeviceDiscovery {
    /// ACPI tables.
    #[default]
    Acpi,
    /// `virtio_mmio.device=` on its command line; boots faster and needs no ACPI.
    CommandLine,
}

impl DeviceDiscovery {
    /// Name in records and in the REST interface.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acpi => "acpi",
            Self::CommandLine => "command_line",
        }
    }
}
