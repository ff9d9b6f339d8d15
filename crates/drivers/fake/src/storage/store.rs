//! Storage in a temporary directory: real paths with next to nothing in them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::storage::{ImageConfig, ImageInfo, KernelInfo, Space, StorageError};
use microvm_types::Unreadable;
use microvm_types::kernel::DeviceDiscovery;
use sha2::{Digest, Sha256};

use crate::script::{Operation, Script, Verdict};
use crate::storage::saved::Saved;

/// Storage below a temporary directory that goes with the last clone.
#[derive(Debug, Clone)]
pub struct FakeStorage {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// Removes the directory when dropped.
    _guard: tempfile::TempDir,
    pub(crate) root: Utf8PathBuf,
    pub(crate) images: Mutex<BTreeMap<String, ImageInfo>>,
    pub(crate) builds: Mutex<BTreeMap<String, String>>,
    pub(crate) kernels: Mutex<BTreeMap<String, KernelInfo>>,
    pub(crate) unreadable: Mutex<Vec<Unreadable>>,
    pub(crate) saved: Mutex<Saved>,
    script: Script,
    pub(crate) space: Mutex<Space>,
}

pub(crate) fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> StorageError {
    move |cause| StorageError::Io { action, path: path.to_owned(), cause }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FakeStorage {
    /// Sets how many bytes can still be written; 1 TiB at first.
    pub fn set_free(&self, free: u64) {
        lock(&self.shared.space).free = free;
    }

    /// Adds an image and a kernel of this name that cannot be read.
    pub fn add_unreadable(&self, name: &str) {
        lock(&self.shared.unreadable).push(Unreadable::new(name, "its manifest is damaged"));
    }

    /// Empty storage.
    ///
    /// # Errors
    /// If no temporary directory can be made.
    pub fn empty() -> Result<Self, StorageError> {
        let temporary = Utf8PathBuf::from_path_buf(std::env::temp_dir()).unwrap_or_else(|_| "/tmp".into());
        let guard = tempfile::tempdir_in(&temporary).map_err(io("making a directory in", &temporary))?;
        let root =
            Utf8PathBuf::from_path_buf(guard.path().to_owned()).map_err(|path| StorageError::BadInput {
                what: path.display().to_string(),
                detail: "the path is not UTF-8".to_owned(),
            })?;
        for directory in ["images", "kernels", "vms", "memory", "layers"] {
            let path = root.join(directory);
            fs::create_dir(&path).map_err(io("making", &path))?;
        }
        let shared = Shared {
            _guard: guard,
            root,
            images: Mutex::default(),
            builds: Mutex::default(),
            kernels: Mutex::default(),
            unreadable: Mutex::default(),
            saved: Mutex::default(),
            script: Script::default(),
            space: Mutex::new(Space { free: 1 << 40, total: 1 << 40 }),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Storage with an image `debian-python` and a kernel `distribution`, as a quickstart leaves it.
    ///
    /// # Errors
    /// If no temporary directory can be made.
    pub fn furnished() -> Result<Self, StorageError> {
        let storage = Self::empty()?;
        storage.add("debian-python", "made up", &ImageConfig::default(), b"a made-up image")?;
        storage.put_kernel("distribution", "made up", DeviceDiscovery::Acpi, b"a made-up kernel")?;
        Ok(storage)
    }

    /// Planned faults.
    #[must_use]
    pub fn script(&self) -> &Script {
        &self.shared.script
    }

    pub(crate) async fn ask(&self, operation: Operation, path: &Utf8Path) -> Result<Verdict, StorageError> {
        match self.shared.script.ask(operation).await {
            Verdict::Fail => Err(io("using", path)(std::io::Error::other("a fault was planned here"))),
            go => Ok(go),
        }
    }
}
