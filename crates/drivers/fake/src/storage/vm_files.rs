//! Files of VMs: a directory each, with a disk that holds next to nothing.

use std::fs;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::storage::{DiskFormat, LostDisks, Space, StorageError, VmFiles, VmStorage};
use microvm_types::VmId;
use microvm_types::vm::VmRecord;

use crate::script::{Operation, Verdict};
use crate::storage::saved::FakeDisk;
use crate::storage::store::{FakeStorage, io, lock};

/// The first overlay of a VM's disk.
pub(crate) const FIRST_OVERLAY: &str = "scratch.qcow2";
/// A disk to which nothing was written.
pub(crate) const EMPTY_DISK: &[u8] = b"a made-up disk";
/// Marks the directory of a VM whose creation has not been reported.
pub(crate) const UNFINISHED: &str = "unfinished";
/// Copy of the record of a VM, in its directory.
const RECORD: &str = "record.json";
/// Its serial number.
pub(crate) const SCRATCH: &str = "scratch";

impl FakeStorage {
    pub(crate) fn mark_unfinished(&self, directory: &Utf8Path) -> Result<(), StorageError> {
        let marker = directory.join(UNFINISHED);
        fs::write(&marker, []).map_err(io("writing", &marker))
    }

    /// Makes the directory of a VM; an empty one was reserved for it.
    pub(crate) fn make_directory(&self, directory: &Utf8Path) -> Result<(), StorageError> {
        let reserved = fs::read_dir(directory).is_ok_and(|mut found| found.next().is_none());
        if reserved { Ok(()) } else { fs::create_dir(directory).map_err(io("making", directory)) }
    }

    pub(crate) fn zero_path(&self, memory_mib: u32) -> Utf8PathBuf {
        self.shared.root.join("memory").join(format!("{memory_mib}.zero"))
    }

    /// The files of a VM, by whoever they were made.
    pub(crate) fn found(&self, id: &VmId) -> Result<VmFiles, StorageError> {
        let directory = self.vm_directory(id);
        let disk = lock(&self.shared.saved).disks.get(id).cloned().unwrap_or_default();
        let path = directory.join(disk.overlay.as_deref().unwrap_or(FIRST_OVERLAY));
        fs::metadata(&path).map_err(io("looking for", &path))?;
        let overlays = disk.pending.iter().map(|name| directory.join(name));
        let backing = overlays.chain(disk.layers.iter().map(|(_, layer)| layer.0.clone())).collect();
        let scratch = MachineDisk {
            path,
            format: DiskFormat::Qcow2,
            backing,
            read_only: false,
            serial: SCRATCH.to_owned(),
        };
        let own = disk.own.iter().map(|(serial, name)| MachineDisk {
            path: directory.join(name),
            backing: Vec::new(),
            serial: serial.clone(),
            ..scratch.clone()
        });
        let own = own.collect();
        Ok(VmFiles { directory, scratch, own })
    }

    /// The all-zero memory, by whoever it is needed.
    pub(crate) fn zero(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        let path = self.zero_path(memory_mib);
        let file = fs::File::create(&path).map_err(io("making", &path))?;
        file.set_len(u64::from(memory_mib) << 20).map_err(io("sizing", &path))?;
        Ok(path)
    }
}

#[async_trait]
impl VmStorage for FakeStorage {
    async fn create_vm_files(&self, id: &VmId, _disk_mib: u32) -> Result<VmFiles, StorageError> {
        let directory = self.vm_directory(id);
        let verdict = self.ask(Operation::CreateFiles, &directory).await?;
        self.make_directory(&directory)?;
        let path = directory.join(FIRST_OVERLAY);
        fs::write(&path, EMPTY_DISK).map_err(io("writing", &path))?;
        self.mark_unfinished(&directory)?;
        lock(&self.shared.saved).disks.insert(id.clone(), FakeDisk::default());
        verdict.finish().await;
        self.found(id)
    }

    async fn reserve_vm_directory(&self, id: &VmId) -> Result<Utf8PathBuf, StorageError> {
        let directory = self.vm_directory(id);
        fs::create_dir(&directory).map_err(io("making", &directory))?;
        Ok(directory)
    }

    async fn finish_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let marker = self.vm_directory(id).join(UNFINISHED);
        let verdict = self.ask(Operation::FinishFiles, &marker).await?;
        let finished = match fs::remove_file(&marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("removing", &marker)(error)),
            _ => Ok(()),
        };
        verdict.finish().await;
        finished
    }

    async fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError> {
        let directory = self.vm_directory(id);
        // One that was only reserved has no disk.
        Ok(directory.join(UNFINISHED).exists() || !lock(&self.shared.saved).disks.contains_key(id))
    }

    async fn keep_record(&self, record: &VmRecord) -> Result<(), StorageError> {
        let path = self.vm_directory(&record.id).join(RECORD);
        let verdict = self.ask(Operation::KeepRecord, &path).await?;
        let kept = serde_json::to_vec(record).map_err(|error| io("writing", &path)(error.into()))?;
        fs::write(&path, kept).map_err(io("writing", &path))?;
        let marker = path.with_file_name(UNFINISHED);
        if marker.exists() {
            fs::remove_file(&marker).map_err(io("removing", &marker))?;
        }
        verdict.finish().await;
        Ok(())
    }

    async fn kept_record(&self, id: &VmId) -> Result<Option<VmRecord>, StorageError> {
        let path = self.vm_directory(id).join(RECORD);
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("reading", &path)(error)),
            Ok(kept) => serde_json::from_slice(&kept).map(Some).map_err(|error| StorageError::Damaged {
                what: format!("the record in the directory of VM {id}"),
                detail: error.to_string(),
            }),
        }
    }

    async fn vm_files(&self, id: &VmId) -> Result<VmFiles, StorageError> {
        let verdict = self.ask(Operation::FindFiles, &self.vm_directory(id)).await?;
        let files = self.found(id)?;
        verdict.finish().await;
        Ok(files)
    }

    async fn remove_vm_files(&self, id: &VmId) -> Result<(), StorageError> {
        let directory = self.vm_directory(id);
        let verdict = self.ask(Operation::RemoveFiles, &directory).await?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("removing", &directory)(error));
            }
            _ => {}
        }
        lock(&self.shared.saved).disks.remove(id);
        verdict.finish().await;
        Ok(())
    }

    async fn write_back(&self, id: &VmId, lost: LostDisks) -> Result<(), StorageError> {
        let directory = self.vm_directory(id);
        let verdict = match self.ask(Operation::WriteBack, &directory).await {
            Err(_) if lost == LostDisks::Forget => Verdict::Go,
            // As where the file system of the user's disk is gone.
            Err(_) if lost == LostDisks::GiveUpRemoved => {
                let reason = "its directory is gone".to_owned();
                return Err(StorageError::NotWrittenBack { path: directory, reason });
            }
            other => other?,
        };
        if let Some(disk) = lock(&self.shared.saved).disks.get_mut(id).filter(|disk| !disk.copies) {
            disk.own.clear();
        }
        verdict.finish().await;
        Ok(())
    }

    async fn vm_directories(&self) -> Result<Vec<VmId>, StorageError> {
        let root = self.shared.root.join("vms");
        let entries = fs::read_dir(&root).map_err(io("reading", &root))?;
        let names =
            entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut ids: Vec<VmId> = names.filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    fn vm_directory(&self, id: &VmId) -> Utf8PathBuf {
        self.shared.root.join("vms").join(id.as_str())
    }

    async fn zero_memory(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError> {
        let verdict = self.ask(Operation::ZeroMemory, &self.zero_path(memory_mib)).await?;
        let path = self.zero(memory_mib)?;
        verdict.finish().await;
        Ok(path)
    }

    async fn inspect_disk(
        &self,
        path: &Utf8Path,
        known: Option<DiskFormat>,
    ) -> Result<DiskFormat, StorageError> {
        let data = fs::read(path)
            .map_err(|error| StorageError::BadInput { what: path.to_string(), detail: error.to_string() })?;
        // The first bytes of every qcow2 file.
        let found = if data.starts_with(b"QFI\xfb") { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        match (known, found) {
            (Some(DiskFormat::Qcow2), DiskFormat::Raw) => Err(StorageError::BadInput {
                what: path.to_string(),
                detail: "it is not a qcow2 file".to_owned(),
            }),
            (known, found) => Ok(known.unwrap_or(found)),
        }
    }

    async fn real_disk_path(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        path.canonicalize_utf8()
            .map_err(|error| StorageError::BadInput { what: path.to_string(), detail: error.to_string() })
    }

    async fn inspect_folder(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
        let bad = |detail: String| StorageError::BadInput { what: path.to_string(), detail };
        let real = path.canonicalize_utf8().map_err(|error| bad(error.to_string()))?;
        if real.is_dir() { Ok(real) } else { Err(bad("it is not a folder".to_owned())) }
    }

    async fn space(&self) -> Result<Space, StorageError> {
        Ok(*lock(&self.shared.space))
    }

    async fn vm_disk_usage(&self, id: &VmId) -> Result<u64, StorageError> {
        let path = self.found(id)?.scratch.path;
        Ok(fs::metadata(&path).map_err(io("looking at", &path))?.len())
    }
}
