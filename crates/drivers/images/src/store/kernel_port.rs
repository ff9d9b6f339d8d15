//! The port for kernels.

use async_trait::async_trait;
use microvm_ports::storage::{KernelInfo, KernelSource, ResolvedKernel};
use microvm_ports::{KernelStore, Progress, StorageError};
use microvm_types::{Listed, Unreadable};

use super::Images;

#[async_trait]
impl KernelStore for Images {
    async fn kernels(&self) -> Result<Listed<KernelInfo>, StorageError> {
        self.blocking(|inner, _| {
            let mut all = Listed::default();
            for name in inner.kernels.kernel_names()? {
                match inner.kernels.kernel_info(&name) {
                    Ok(info) => all.found.push(info),
                    Err(error) => all.unreadable.push(Unreadable::new(name, error)),
                }
            }
            Ok(all)
        })
        .await
    }

    async fn kernel(&self, name: &str) -> Result<ResolvedKernel, StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| inner.kernels.resolve_kernel(&name)).await
    }

    async fn mounts_shares(&self, name: &str) -> Result<bool, StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| inner.kernels.kernel_mounts_shares(&name)).await
    }

    async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, StorageError> {
        let (name, source) = (name.to_owned(), source.clone());
        self.blocking(move |inner, cancel| inner.kernels.put_kernel(&name, &source, &cancel, &progress)).await
    }

    async fn remove_kernel(&self, name: &str) -> Result<(), StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| inner.kernels.remove_kernel(&name)).await
    }
}
