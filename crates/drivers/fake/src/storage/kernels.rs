//! Kernels: small files, and what is told about them.

use std::fs;

use async_trait::async_trait;
use microvm_ports::progress::Progress;
use microvm_ports::storage::{KernelInfo, KernelSource, KernelStore, ResolvedKernel, StorageError};
use microvm_types::Listed;
use microvm_types::kernel::DeviceDiscovery;

use crate::script::Operation;
use crate::storage::store::{FakeStorage, digest, io, lock};

impl FakeStorage {
    pub(crate) fn put_kernel(
        &self,
        name: &str,
        source: &str,
        discovery: DeviceDiscovery,
        data: &[u8],
    ) -> Result<KernelInfo, StorageError> {
        for (suffix, content) in [("kernel", data), ("initramfs", b"a made-up initramfs".as_slice())] {
            let path = self.shared.root.join("kernels").join(format!("{name}.{suffix}"));
            fs::write(&path, content).map_err(io("writing", &path))?;
        }
        let info = KernelInfo {
            name: name.to_owned(),
            release: "6.0.0-fake".to_owned(),
            discovery,
            sha256: digest(data),
            size: data.len() as u64,
            created_ms: 0,
            source: source.to_owned(),
            is_default: false,
            outdated: false,
        };
        lock(&self.shared.kernels).insert(name.to_owned(), info.clone());
        Ok(info)
    }

    fn unknown_kernel(name: &str) -> StorageError {
        StorageError::UnknownKernel(name.to_owned())
    }
}

#[async_trait]
impl KernelStore for FakeStorage {
    async fn kernels(&self) -> Result<Listed<KernelInfo>, StorageError> {
        let mut all: Vec<KernelInfo> = lock(&self.shared.kernels).values().cloned().collect();
        let default = if all.iter().any(|kernel| kernel.name == "built") { "built" } else { "distribution" };
        for kernel in &mut all {
            kernel.is_default = kernel.name == default;
        }
        Ok(Listed { found: all, unreadable: lock(&self.shared.unreadable).clone() })
    }

    async fn kernel(&self, name: &str) -> Result<ResolvedKernel, StorageError> {
        let verdict = self.ask(Operation::Kernel, &self.shared.root).await?;
        let wanted = |kernel: &KernelInfo| kernel.name == name || (name == "default" && kernel.is_default);
        let info =
            self.kernels().await?.found.into_iter().find(wanted).ok_or_else(|| Self::unknown_kernel(name))?;
        verdict.finish().await;
        let file = |suffix| self.shared.root.join("kernels").join(format!("{}.{suffix}", info.name));
        Ok(ResolvedKernel { path: file("kernel"), initramfs: file("initramfs"), info })
    }

    async fn mounts_shares(&self, name: &str) -> Result<bool, StorageError> {
        // As in life: the distribution's cloud kernel cannot.
        Ok(self.kernel(name).await?.info.name != "distribution")
    }

    async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, StorageError> {
        progress.step("making up a kernel");
        match source {
            KernelSource::File { path, discovery } => {
                let data = fs::read(path).map_err(io("reading", path))?;
                self.put_kernel(name, path.as_str(), *discovery, &data)
            }
            other => self.put_kernel(name, "made up", DeviceDiscovery::Acpi, format!("{other:?}").as_bytes()),
        }
    }

    async fn remove_kernel(&self, name: &str) -> Result<(), StorageError> {
        lock(&self.shared.kernels).remove(name).map(drop).ok_or_else(|| Self::unknown_kernel(name))
    }
}
