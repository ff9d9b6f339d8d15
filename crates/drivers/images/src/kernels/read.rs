//! Finding kernels and verifying them.

use camino::Utf8PathBuf;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{names_in, sync_directory};
use microvm_durable::manifest;
use microvm_durable::stamp::verify_now;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::{KernelInfo, ResolvedKernel};

use super::{DEFAULTS, KernelFiles, KernelManifest, MANIFEST, MODULES, STAMP, build};

/// Refuses names that could not be a file name of ours, and `default`, which always means another one.
pub(super) fn check_name(name: &str) -> Result<(), StorageError> {
    let fine = name.len() <= 64
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let shown: String = name.chars().take(64).collect();
    match (fine, name) {
        (true, "default") => Err(bad_input(
            "the kernel name `default`",
            "it always stands for the built kernel, or the distribution's",
        )),
        (true, _) => Ok(()),
        (false, _) => Err(bad_input(
            format!("the kernel name `{}`", shown.escape_debug()),
            "a name has 1 to 64 letters, digits, `.`, `_` and `-`, and begins with a letter or digit",
        )),
    }
}

impl KernelFiles {
    pub(crate) fn kernel_names(&self) -> Result<Vec<String>, StorageError> {
        Ok(names_in(&self.directory)?.into_iter().filter(|name| check_name(name).is_ok()).collect())
    }

    pub(crate) fn kernel_directory(&self, name: &str) -> Utf8PathBuf {
        self.directory.join(name)
    }

    pub(super) fn default_kernel(&self) -> Option<&'static str> {
        DEFAULTS.into_iter().find(|name| self.kernel_directory(name).join(MANIFEST).exists())
    }

    /// Kernel that a name given by a user stands for.
    pub(crate) fn find_kernel(&self, name: &str) -> Result<String, StorageError> {
        if name == "default" {
            let found = self.default_kernel();
            return found.map(str::to_owned).ok_or(StorageError::NoKernel);
        }
        if check_name(name).is_err() || !self.kernel_directory(name).exists() {
            return Err(StorageError::UnknownKernel(name.chars().take(64).collect()));
        }
        Ok(name.to_owned())
    }

    pub(super) fn kernel_manifest(&self, name: &str) -> Result<KernelManifest, StorageError> {
        manifest::read(&self.kernel_directory(name).join(MANIFEST), &describe(name))
    }

    pub(crate) fn kernel_info(&self, name: &str) -> Result<KernelInfo, StorageError> {
        let record = self.kernel_manifest(name)?;
        Ok(KernelInfo {
            name: name.to_owned(),
            release: record.release,
            discovery: record.discovery,
            sha256: record.kernel.sha256,
            size: record.kernel.size,
            created_ms: record.created_ms,
            outdated: build::is_outdated(&record.source, record.recipe.as_deref()),
            source: record.source,
            is_default: self.default_kernel() == Some(name),
        })
    }

    pub(crate) fn resolve_kernel(&self, name: &str) -> Result<ResolvedKernel, StorageError> {
        let name = self.find_kernel(name)?;
        let record = self.kernel_manifest(&name)?;
        let directory = self.kernel_directory(&name);
        let path = directory.join(&record.kernel.name);
        self.verified.verify(
            &path,
            &describe(&name),
            &record.kernel.sha256,
            record.kernel.size,
            &directory.join(STAMP),
        )?;
        let initramfs = self.initramfs(&name, &record)?;
        Ok(ResolvedKernel { info: self.kernel_info(&name)?, path, initramfs })
    }

    /// Removes a kernel: out of sight first, then away.
    pub(crate) fn remove_kernel(&self, name: &str) -> Result<(), StorageError> {
        let directory = self.kernel_directory(&self.find_kernel(name)?);
        let workspace = Workspace::create(&self.work)?;
        std::fs::rename(&directory, workspace.join("kernel")).map_err(io_error("removing", &directory))?;
        sync_directory(&self.directory)
    }

    /// Hashes the kernel and its modules now.
    pub(crate) fn verify_kernel(&self, name: &str) -> Result<(), StorageError> {
        let record = self.kernel_manifest(name)?;
        let directory = self.kernel_directory(name);
        verify_now(
            &directory.join(&record.kernel.name),
            &describe(name),
            &record.kernel.sha256,
            record.kernel.size,
        )?;
        for module in &record.modules {
            let what = format!("the module `{}` of {}", module.name, describe(name));
            verify_now(&directory.join(MODULES).join(&module.name), &what, &module.sha256, module.size)?;
        }
        Ok(())
    }
}

/// A kernel in messages.
pub(super) fn describe(name: &str) -> String {
    format!("the kernel `{name}`")
}
