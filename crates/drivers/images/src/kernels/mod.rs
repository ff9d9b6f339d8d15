//! Kernels, and the initial file system each boots with.

mod add;
mod build;
mod built_in;
mod bzimage;
mod cpio;
mod distribution;
mod elf;
#[cfg(test)]
mod fuzz;
mod initramfs;
mod modules;
mod packages;
mod read;
mod shares;

use std::sync::{Arc, Mutex};

use camino::Utf8PathBuf;
use microvm_durable::stamp::VerifiedFiles;
use microvm_ports::Clock;
use microvm_types::kernel::DeviceDiscovery;
use serde::{Deserialize, Serialize};

use self::initramfs::InitramfsCache;
use crate::config::AgentSource;

/// Configuration of the kernel that [`KernelSource::Build`](microvm_ports::storage::KernelSource::Build) makes, on top of `allnoconfig`.
pub const KERNEL_FRAGMENT: &str = include_str!("../../kernel/fragment.config");

const MANIFEST: &str = "manifest.json";
const STAMP: &str = "verified.json";
const MODULES: &str = "modules";

/// Name of the distribution's kernel.
const DISTRIBUTION: &str = "distribution";
/// Name of the kernel built from source.
const BUILT: &str = "built";
/// Kernels that `default` stands for, best first.
const DEFAULTS: [&str; 2] = [BUILT, DISTRIBUTION];

/// One stored file of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredFile {
    /// Its name without a directory.
    name: String,
    sha256: String,
    size: u64,
}

/// Manifest stored beside a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KernelManifest {
    release: String,
    discovery: DeviceDiscovery,
    created_ms: i64,
    source: String,
    /// SHA-256 of what a kernel built from source was made with ([`build::recipe`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
    kernel: StoredFile,
    /// In the order in which they are loaded.
    modules: Vec<StoredFile>,
}

/// Kernels: a directory each, called by its name.
pub(crate) struct KernelFiles {
    directory: Utf8PathBuf,
    /// For work in progress.
    work: Utf8PathBuf,
    agent: AgentSource,
    clock: Arc<dyn Clock>,
    verified: VerifiedFiles,
    initramfs: Mutex<InitramfsCache>,
    /// Held for the moment in which a kernel is replaced, never while work is done.
    publishing: Mutex<()>,
}

impl KernelFiles {
    /// Kernels in `directory`, made in `work`; `agent` goes into their initial file systems.
    pub(crate) fn new(
        directory: Utf8PathBuf,
        work: Utf8PathBuf,
        agent: AgentSource,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            directory,
            work,
            agent,
            clock,
            verified: VerifiedFiles::default(),
            initramfs: Mutex::default(),
            publishing: Mutex::default(),
        }
    }
}
