//! Kernels.

use microvm_types::Unreadable;
use microvm_types::kernel::DeviceDiscovery;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Release, as `uname -r` shows it.
    pub release: String,
    /// Device discovery: `acpi` or `command_line`.
    pub discovery: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
    /// When it was put there (RFC 3339 with offset).
    pub created_at: String,
    /// Where it came from, in a few words.
    pub source: String,
    /// True if `default` means this kernel now.
    pub is_default: bool,
    /// True if an older version of the program built it, and this one would put other things into it: build it anew.
    #[serde(default)]
    pub outdated: bool,
}

/// All kernels by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KernelList {
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// Those that cannot be read; the list is not whole then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum KernelSource {
    /// The distribution's package.
    Distribution,
    /// Built from the distribution's source package.
    Build,
    /// A file on the server's host.
    File {
        /// Absolute path.
        path: String,
        /// Device discovery.
        #[serde(default)]
        discovery: DeviceDiscovery,
    },
}

/// A kernel to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddKernel {
    /// Its name; default: `distribution` or `built`, after the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it comes from.
    pub source: KernelSource,
}
