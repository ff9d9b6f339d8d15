//! The initial file system of a kernel: our agent as `/init`, and the modules it must load to reach its root.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, damaged, io_error};
use microvm_durable::files::{
    disk_usage, names_in, remove_all, rename_durably, sha256, sha256_file, write_new,
};
use microvm_durable::stamp::Stamp;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::cpio::CpioWriter;
use super::read::describe;
use super::{KernelFiles, KernelManifest, MODULES};
use crate::config::AgentSource;

const PREFIX: &str = "initramfs-";
/// Largest agent that is believed.
const AGENT_MAX: u64 = 256 << 20;

/// Initial file systems made or verified by this process, by kernel.
pub(crate) type InitramfsCache = HashMap<String, Made>;

/// Inputs of an initial file system, and the file itself.
pub(crate) struct Made {
    kernel: String,
    agent: Option<Stamp>,
    path: Utf8PathBuf,
    stamp: Stamp,
}

impl KernelFiles {
    /// The initial file system of a kernel; made anew if the agent or the kernel changed.
    pub(super) fn initramfs(&self, name: &str, record: &KernelManifest) -> Result<Utf8PathBuf, StorageError> {
        let agent_stamp = match &self.agent {
            AgentSource::Path(path) => Some(Stamp::of(path).map_err(|_| missing_agent(path))?),
            AgentSource::Bytes(_) => None,
        };
        // Two starts at once make it once.
        let mut cache = self.initramfs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = cache.get(name)
            && made.kernel == record.kernel.sha256
            && made.agent == agent_stamp
            && Stamp::of(&made.path).is_ok_and(|stamp| stamp == made.stamp)
        {
            return Ok(made.path.clone());
        }
        let path = self.make_initramfs(name, record)?;
        let made = Made {
            kernel: record.kernel.sha256.clone(),
            agent: agent_stamp,
            stamp: Stamp::of(&path)?,
            path: path.clone(),
        };
        cache.insert(name.to_owned(), made);
        Ok(path)
    }

    /// The name holds the hash of the content, so a file that is there can be verified and kept.
    fn make_initramfs(&self, name: &str, record: &KernelManifest) -> Result<Utf8PathBuf, StorageError> {
        let directory = self.kernel_directory(name);
        let content = archive(&self.agent_program()?, &directory.join(MODULES), record, name)?;
        let hash = sha256(&content);
        let path = directory.join(format!("{PREFIX}{hash}.cpio"));
        if path.exists() {
            if sha256_file(&path)?.0 == hash {
                return Ok(path);
            }
            tracing::warn!(%path, "a damaged initial file system is made again");
        }
        let workspace = Workspace::create(&self.work)?;
        let new = workspace.join("initramfs");
        write_new(&new, 0o444, &content)?;
        rename_durably(&new, &path)?;
        Ok(path)
    }

    fn agent_program(&self) -> Result<Arc<[u8]>, StorageError> {
        match &self.agent {
            AgentSource::Bytes(bytes) => Ok(Arc::clone(bytes)),
            AgentSource::Path(path) => {
                let metadata = path.metadata().map_err(|_| missing_agent(path))?;
                if !metadata.is_file() || metadata.len() == 0 || metadata.len() > AGENT_MAX {
                    return Err(bad_input(path.as_str(), "it is not a guest agent"));
                }
                Ok(std::fs::read(path).map_err(io_error("reading", path))?.into())
            }
        }
    }

    /// Removes initial file systems that are not the present one of their kernel; returns the bytes freed. Machines that
    /// run have read theirs.
    pub(crate) fn remove_old_initramfs(&self) -> Result<u64, StorageError> {
        let cache = self.initramfs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        for name in self.kernel_names()? {
            let Some(current) = cache.get(&name) else { continue };
            let directory = self.kernel_directory(&name);
            for file in names_in(&directory)?.into_iter().filter(|file| file.starts_with(PREFIX)) {
                let path = directory.join(file);
                if path != current.path {
                    freed += disk_usage(&path).unwrap_or(0);
                    remove_all(&path)?;
                }
            }
        }
        Ok(freed)
    }
}

fn missing_agent(path: &Utf8Path) -> StorageError {
    bad_input("the guest agent", format!("{path} is not there: build it, or install microvm again"))
}

fn archive(
    agent: &[u8],
    modules: &Utf8Path,
    record: &KernelManifest,
    name: &str,
) -> Result<Vec<u8>, StorageError> {
    let mut cpio = CpioWriter::new();
    for directory in ["dev", "proc", "sys", "modules"] {
        cpio.directory(directory, 0o755);
    }
    // Before devtmpfs is mounted the kernel opens this one for the standard streams of `/init`.
    cpio.character_device("dev/console", 0o600, (5, 1));
    cpio.file("init", 0o755, agent);
    let mut order = String::new();
    for module in &record.modules {
        let path = modules.join(&module.name);
        let content = std::fs::read(&path).map_err(io_error("reading", &path))?;
        let found = sha256(&content);
        if found != module.sha256 {
            let what = format!("the module `{}` of {}", module.name, describe(name));
            return Err(damaged(what, format!("its SHA-256 should be {}, but is {found}", module.sha256)));
        }
        cpio.file(&format!("modules/{}", module.name), 0o644, &content);
        order.push_str(&module.name);
        order.push('\n');
    }
    cpio.file("modules/order", 0o644, order.as_bytes());
    Ok(cpio.finish())
}
