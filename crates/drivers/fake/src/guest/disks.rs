//! The writable disks of fake machines: files in memory while a machine has them, in a layer's file once it is frozen.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::hypervisor::{LaunchError, MachineDisk};

use crate::guest::tree::Tree;
use crate::storage::EMPTY_DISK;

/// Files of a VM; they stay when its machine ends, as a disk does.
pub(crate) type Disk = Arc<Mutex<Tree>>;

/// Every disk that a machine wrote to, by the path of its overlay.
#[derive(Debug, Default)]
pub(crate) struct Disks(Mutex<HashMap<Utf8PathBuf, Disk>>);

impl Disks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Utf8PathBuf, Disk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Content that a machine sees: the newest of its layers that was ever written to.
    pub(crate) fn open(&self, disk: &MachineDisk) -> Result<Disk, LaunchError> {
        let mut disks = self.lock();
        if let Some(known) = disks.get(&disk.path) {
            return Ok(Arc::clone(known));
        }
        let mut found = None;
        for path in std::iter::once(&disk.path).chain(&disk.backing) {
            let kept = disks.get(path).map(|kept| tree(kept).clone());
            found = if kept.is_some() { kept } else { read(path)? };
            if found.is_some() {
                break;
            }
        }
        let opened: Disk = Arc::new(Mutex::new(found.unwrap_or_default()));
        disks.insert(disk.path.clone(), Arc::clone(&opened));
        Ok(opened)
    }

    /// The present files stay in `old`; the machine writes to `new` from now on.
    pub(crate) fn switch(&self, old: &Utf8Path, new: &Utf8Path) -> std::io::Result<()> {
        let mut disks = self.lock();
        if let Some(disk) = disks.get(old).cloned() {
            // A frozen layer is in its file: machines of other states read it from there.
            fs::write(old, serde_json::to_vec(&*tree(&disk))?)?;
            disks.remove(old);
            disks.insert(new.to_owned(), disk);
        }
        Ok(())
    }
}

fn tree(disk: &Disk) -> MutexGuard<'_, Tree> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The files in a frozen layer; `None` if nothing was written to it.
fn read(path: &Utf8Path) -> Result<Option<Tree>, LaunchError> {
    let bad = |detail: String| LaunchError::Spec(format!("the disk {path} cannot be read: {detail}"));
    let content = fs::read(path).map_err(|error| bad(error.to_string()))?;
    if content == EMPTY_DISK {
        return Ok(None);
    }
    serde_json::from_slice(&content).map(Some).map_err(|error| bad(error.to_string()))
}
