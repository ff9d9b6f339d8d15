//! Puts a kernel into the store.

use std::sync::PoisonError;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, errno, failed, io_error};
use microvm_durable::files::{make_directory, sha256, sync_directory, write_new};
use microvm_durable::manifest;
use microvm_durable::workspace::Workspace;
use microvm_ports::storage::{KernelInfo, KernelSource};
use microvm_ports::{Progress, StorageError};
use microvm_types::kernel::DeviceDiscovery;

use super::modules::Module;
use super::{
    KernelFiles, KernelManifest, MANIFEST, MODULES, STAMP, StoredFile, build, built_in, bzimage,
    distribution, elf, read,
};

/// Largest kernel file of a user's.
const KERNEL_MAX: u64 = 512 << 20;

/// A kernel that is ready to be stored.
pub(crate) struct NewKernel {
    /// bzImage, or an ELF file with a PVH entry.
    pub(crate) kernel: Vec<u8>,
    /// If known; otherwise it is read from the kernel.
    pub(crate) release: Option<String>,
    pub(crate) discovery: DeviceDiscovery,
    pub(crate) source: String,
    /// What it was built with, if it was built from source.
    pub(crate) recipe: Option<String>,
    /// In the order in which they are loaded.
    pub(crate) modules: Vec<Module>,
}

impl KernelFiles {
    pub(crate) fn put_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<KernelInfo, StorageError> {
        read::check_name(name)?;
        let workspace = Workspace::create(&self.work)?;
        let new = match source {
            KernelSource::Distribution => distribution::fetch(&workspace, cancel, progress)?,
            KernelSource::Build => build::build(&workspace, cancel, progress)?,
            KernelSource::File { path, discovery } => from_file(path, *discovery)?,
        };
        let file_name = if elf::is_elf64(&new.kernel) { "vmlinux" } else { "vmlinuz" };
        let release =
            new.release.or_else(|| bzimage::release(&new.kernel)).unwrap_or_else(|| "unknown".into());
        let directory = workspace.join("kernel");
        // Each by itself: a parent that is made on the way does not get the mode.
        make_directory(&directory.join(MODULES), 0o711)?;
        make_directory(&directory, 0o711)?;
        let kernel = store(&directory, file_name, &new.kernel)?;
        let mut modules = Vec::new();
        for (module, content) in &new.modules {
            modules.push(store(&directory.join(MODULES), &format!("{module}.ko"), content)?);
        }
        let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
        write_new(&directory.join(MODULES).join("order"), 0o644, order.as_bytes())?;
        let record = KernelManifest {
            release,
            discovery: new.discovery,
            created_ms: self.clock.now_ms(),
            source: new.source,
            recipe: new.recipe,
            kernel,
            modules,
        };
        manifest::write(&directory.join(MANIFEST), &record)?;
        self.verified.remember(&directory.join(file_name), &record.kernel.sha256, &directory.join(STAMP));
        sync_directory(&directory.join(MODULES))?;
        sync_directory(&directory)?;
        cancel.check()?;
        {
            let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
            self.replace_kernel(&directory, name)?;
        }
        self.kernel_info(name)
    }

    /// The new one takes the place of the old in one step; the old one goes with the workspace.
    fn replace_kernel(&self, new: &Utf8Path, name: &str) -> Result<(), StorageError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let target = self.directory.join(name);
        match renameat_with(CWD, new.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => {
                std::fs::rename(new, &target).map_err(|error| failed("renaming to", &target, error))?
            }
            Err(error) => return Err(errno("renaming to", &target)(error)),
        }
        sync_directory(&self.directory)
    }
}

fn store(directory: &Utf8Path, name: &str, content: &[u8]) -> Result<StoredFile, StorageError> {
    write_new(&directory.join(name), 0o444, content)?;
    Ok(StoredFile { name: name.to_owned(), sha256: sha256(content), size: content.len() as u64 })
}

fn from_file(path: &Utf8Path, discovery: DeviceDiscovery) -> Result<NewKernel, StorageError> {
    let metadata = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad_input(path.as_str(), "there is no such file"),
        _ => io_error("examining", path)(error),
    })?;
    if !metadata.is_file() || metadata.len() > KERNEL_MAX {
        return Err(bad_input(path.as_str(), "it is not a kernel: a file of at most 512 MiB is expected"));
    }
    let content = std::fs::read(path).map_err(io_error("reading", path))?;
    if !elf::is_elf64(&content) && !bzimage::is_bzimage(&content) {
        return Err(bad_input(path.as_str(), "it is neither a bzImage nor a vmlinux"));
    }
    if elf::is_elf64(&content) && !elf::has_pvh_entry(&content) {
        return Err(bad_input(
            path.as_str(),
            "it has no PVH entry point: build it with CONFIG_PVH, or give the bzImage",
        ));
    }
    let release = bzimage::release(&content);
    let kernel = bzimage::extract_vmlinux(&content).unwrap_or(content);
    // One that stays compressed cannot be looked into: the guest's console tells if it was wrong.
    let missing = if elf::is_elf64(&kernel) { built_in::missing(&kernel) } else { Vec::new() };
    if !missing.is_empty() {
        return Err(bad_input(
            path.as_str(),
            format!(
                "it needs modules, and a kernel of your own is started without any: build it with {}, or use the kernel `distribution`",
                missing.iter().map(|option| format!("{option}=y")).collect::<Vec<_>>().join(", ")
            ),
        ));
    }
    Ok(NewKernel {
        kernel,
        release,
        discovery,
        source: format!("file {}", path.file_name().unwrap_or_default()),
        recipe: None,
        modules: Vec::new(),
    })
}
