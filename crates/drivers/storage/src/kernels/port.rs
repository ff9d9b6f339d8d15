//! The port for kernels.

use async_trait::async_trait;
use microvm_durable::error::io_error;
use microvm_durable::files::sync_directory;
use microvm_ports::storage::{KernelInfo, KernelSource, ResolvedKernel};
use microvm_ports::{KernelStore, Progress, StorageError};
use microvm_types::{Listed, Unreadable};

use crate::store::Storage;

#[async_trait]
impl KernelStore for Storage {
    async fn kernels(&self) -> Result<Listed<KernelInfo>, StorageError> {
        self.blocking(|inner, _| {
            let mut all = Listed::default();
            for name in inner.kernel_names()? {
                match inner.kernel_info(&name) {
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
        self.blocking(move |inner, _| inner.resolve_kernel(&name)).await
    }

    async fn mounts_shares(&self, name: &str) -> Result<bool, StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| inner.kernel_mounts_shares(&name)).await
    }

    async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, StorageError> {
        let (name, source) = (name.to_owned(), source.clone());
        self.blocking(move |inner, cancel| inner.put_kernel(&name, &source, &cancel, &progress)).await
    }

    async fn remove_kernel(&self, name: &str) -> Result<(), StorageError> {
        let name = name.to_owned();
        self.blocking(move |inner, _| {
            let name = inner.find_kernel(&name)?;
            let directory = inner.kernel_directory(&name);
            let workspace = inner.workspace()?;
            std::fs::rename(&directory, workspace.join("kernel"))
                .map_err(io_error("removing", &directory))?;
            sync_directory(&inner.directories.kernels)
        })
        .await
    }
}
