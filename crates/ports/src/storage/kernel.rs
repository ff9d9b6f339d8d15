//! Kernels that VMs boot with.

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_types::Listed;
use microvm_types::kernel::DeviceDiscovery;
use serde::{Deserialize, Serialize};

use super::error::StorageError;
use crate::progress::Progress;

/// One kernel in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Its name: `distribution`, `built`, or the user's.
    pub name: String,
    /// Release, as `uname -r` shows it.
    pub release: String,
    /// Source from which it learns where its devices are.
    pub discovery: DeviceDiscovery,
    /// SHA-256 of the kernel file in hexadecimal.
    pub sha256: String,
    /// Size of the kernel file in bytes.
    pub size: u64,
    /// When it was put there, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// Origin in a few words.
    pub source: String,
    /// True if `default` means this kernel now.
    pub is_default: bool,
    /// True if an older version of this program built it and this one would put more, or other things into it.
    pub outdated: bool,
}

/// A kernel ready for use, verified, with the initial file system that holds our agent.
#[derive(Debug, Clone)]
pub struct ResolvedKernel {
    /// Description of the kernel.
    pub info: KernelInfo,
    /// The kernel image.
    pub path: Utf8PathBuf,
    /// Its initial file system: the agent as `/init`, and the modules this kernel needs.
    pub initramfs: Utf8PathBuf,
}

/// Source of a kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KernelSource {
    /// The distribution's cloud kernel package.
    Distribution,
    /// Built from the distribution's source package with our configuration.
    Build,
    /// A file of the user's: bzImage or vmlinux with virtio-mmio, virtio-blk, virtio-console, EROFS, ext4 and
    /// overlayfs built in.
    File {
        /// Absolute path on the host.
        path: Utf8PathBuf,
        /// Source from which it learns where its devices are.
        discovery: DeviceDiscovery,
    },
}

/// Kernels.
#[async_trait]
pub trait KernelStore: Send + Sync {
    /// All kernels by name; those that cannot be read beside them.
    async fn kernels(&self) -> Result<Listed<KernelInfo>, StorageError>;

    /// Finds a kernel by name (`default`: `built` if there is one, else `distribution`), verifies it, and makes its
    /// initial file system if the agent has changed since.
    async fn kernel(&self, name: &str) -> Result<ResolvedKernel, StorageError>;

    /// True if a kernel can mount folders of the host (9P over virtio), as far as can be seen from here: `true` where that
    /// is not known.
    async fn mounts_shares(&self, name: &str) -> Result<bool, StorageError>;

    /// Puts a kernel there, replacing one of the same name. If the future is dropped nothing is left behind.
    async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, StorageError>;

    /// Removes a kernel. Running VMs are not harmed: their memory holds it.
    async fn remove_kernel(&self, name: &str) -> Result<(), StorageError>;
}
