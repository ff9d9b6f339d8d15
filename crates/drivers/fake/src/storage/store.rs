//! Images, kernels and VM files in a temporary directory: real paths with next to nothing in them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt;
use microvm_ports::guest::ByteStream;
use microvm_ports::hypervisor::MachineDisk;
use microvm_ports::progress::Progress;
use microvm_ports::storage::{
    Additions, DiskFormat, ExtendedImage, FileSystem, ImageConfig, ImageInfo, ImageSource, ImageStore,
    KernelInfo, KernelSource, KernelStore, LostDisks, RecipeFile, ResolvedImage, ResolvedKernel, Space,
    StorageError, VmFiles, VmStorage,
};
use microvm_types::kernel::DeviceDiscovery;
use microvm_types::vm::VmRecord;
use microvm_types::{Listed, Unreadable, VmId};
use sha2::{Digest, Sha256};

use crate::script::{Operation, Script, Verdict};
use crate::storage::saved::{FakeDisk, Saved};

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
    images: Mutex<BTreeMap<String, ImageInfo>>,
    builds: Mutex<BTreeMap<String, String>>,
    kernels: Mutex<BTreeMap<String, KernelInfo>>,
    unreadable: Mutex<Vec<Unreadable>>,
    pub(crate) saved: Mutex<Saved>,
    script: Script,
    space: Mutex<Space>,
}

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

pub(crate) fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> StorageError {
    move |cause| StorageError::Io { action, path: path.to_owned(), cause }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digest of an image: over its content and its configuration.
fn image_digest(data: &[u8], config: &ImageConfig) -> String {
    format!("sha256:{}", digest(format!("{} {config:?}", digest(data)).as_bytes()))
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

    pub(crate) fn mark_unfinished(&self, directory: &Utf8Path) -> Result<(), StorageError> {
        let marker = directory.join(UNFINISHED);
        fs::write(&marker, []).map_err(io("writing", &marker))
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

    fn image_path(&self, digest: &str) -> Utf8PathBuf {
        self.shared.root.join("images").join(digest.trim_start_matches("sha256:"))
    }

    fn add(
        &self,
        name: &str,
        source: &str,
        config: &ImageConfig,
        data: &[u8],
    ) -> Result<ImageInfo, StorageError> {
        let digest = image_digest(data, config);
        let path = self.image_path(&digest);
        fs::write(&path, data).map_err(io("writing", &path))?;
        let mut images = lock(&self.shared.images);
        for image in images.values_mut() {
            image.names.retain(|other| other != name);
        }
        let created_ms = i64::try_from(images.len()).unwrap_or(i64::MAX);
        let info = images.entry(digest.clone()).or_insert_with(|| ImageInfo {
            digest,
            names: Vec::new(),
            file_system: FileSystem::Erofs,
            size: data.len() as u64,
            created_ms,
            source: source.to_owned(),
            config: config.clone(),
        });
        info.names.push(name.to_owned());
        Ok(info.clone())
    }

    fn put_kernel(
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
        };
        lock(&self.shared.kernels).insert(name.to_owned(), info.clone());
        Ok(info)
    }

    fn find(&self, reference: &str) -> Result<ImageInfo, StorageError> {
        let images = lock(&self.shared.images);
        let by_digest = |image: &&ImageInfo| reference.len() >= 19 && image.digest.starts_with(reference);
        let by_name = |image: &&ImageInfo| image.names.iter().any(|name| name == reference);
        let found = images.values().find(by_name).or_else(|| images.values().find(by_digest)).cloned();
        found.ok_or_else(|| StorageError::UnknownImage(reference.to_owned()))
    }

    fn unknown_kernel(name: &str) -> StorageError {
        StorageError::UnknownKernel(name.to_owned())
    }
}

#[async_trait]
impl ImageStore for FakeStorage {
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError> {
        let mut all: Vec<ImageInfo> = lock(&self.shared.images).values().cloned().collect();
        all.sort_by_key(|image| std::cmp::Reverse(image.created_ms));
        Ok(Listed { found: all, unreadable: lock(&self.shared.unreadable).clone() })
    }

    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError> {
        let verdict = self.ask(Operation::Image, &self.shared.root).await?;
        let info = self.find(reference)?;
        let path = self.image_path(&info.digest);
        let data = fs::read(&path).map_err(io("reading", &path))?;
        let found = image_digest(&data, &info.config);
        if found != info.digest {
            let detail = format!("expected {}, found {found}", info.digest);
            return Err(StorageError::Damaged { what: format!("image {reference}"), detail });
        }
        verdict.finish().await;
        Ok(ResolvedImage { info, path })
    }

    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        progress.step("making up an image");
        let what = format!("{source:?}");
        if let ImageSource::Path { path } = source
            && !path.exists()
        {
            return Err(StorageError::BadInput {
                what: path.to_string(),
                detail: "it does not exist".to_owned(),
            });
        }
        self.add(name, &what, config, format!("{what} {files:?}").as_bytes())
    }

    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        mut data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        progress.step("making up an image");
        let mut content = Vec::new();
        while let Some(piece) = data.next().await {
            let piece = piece.map_err(|error| StorageError::BadInput {
                what: "the stream".to_owned(),
                detail: error.to_string(),
            })?;
            content.extend_from_slice(&piece);
        }
        self.add(name, description, config, &content)
    }

    async fn add_layer(
        &self,
        name: &str,
        base: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        let below = self.find(base)?;
        let config = below.config.with(config);
        self.add_image_from_stream(name, description, &config, data, progress).await
    }

    async fn check_additions(&self, additions: &Additions) -> Result<(), StorageError> {
        let missing =
            |file: &&RecipeFile| file.source.as_ref().is_some_and(|source| !Utf8Path::new(source).exists());
        additions.files.iter().find(missing).map_or(Ok(()), |file| {
            let detail = "it is not there".to_owned();
            Err(StorageError::BadInput { what: file.source.clone().unwrap_or_default(), detail })
        })
    }

    async fn extend_image(
        &self,
        name: &str,
        base: &str,
        additions: &Additions,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ExtendedImage, StorageError> {
        progress.step("making up an image");
        let below = self.find(base)?;
        // One package of the fake's has scripts.
        let scripts = additions.packages.iter().any(|package| package == "with-scripts");
        let config = below.config.with(config);
        let info =
            self.add(name, "made up", &config, format!("{} {additions:?}", below.digest).as_bytes())?;
        let unfinished = if scripts { vec!["true".to_owned()] } else { Vec::new() };
        Ok(ExtendedImage { info, unfinished })
    }

    async fn name_image(&self, reference: &str, name: &str) -> Result<ImageInfo, StorageError> {
        let found = self.find(reference)?;
        let mut images = lock(&self.shared.images);
        for image in images.values_mut() {
            image.names.retain(|other| other != name);
        }
        let unknown = || StorageError::UnknownImage(reference.to_owned());
        let image = images.get_mut(&found.digest).ok_or_else(unknown)?;
        image.names.push(name.to_owned());
        Ok(image.clone())
    }

    async fn build_key(&self, text: &str, files: &[RecipeFile]) -> Result<String, StorageError> {
        let mut key = format!("{text} {files:?}");
        for source in files.iter().filter_map(|file| file.source.as_ref()) {
            let path = camino::Utf8Path::new(source);
            key += &digest(&fs::read(path).map_err(io("reading", path))?);
        }
        Ok(digest(key.as_bytes()))
    }

    async fn cached_build(&self, key: &str) -> Result<Option<String>, StorageError> {
        let found = lock(&self.shared.builds).get(key).cloned();
        Ok(found.filter(|digest| self.find(digest).is_ok()))
    }

    async fn remember_build(&self, key: &str, digest: &str) -> Result<(), StorageError> {
        lock(&self.shared.builds).insert(key.to_owned(), digest.to_owned());
        Ok(())
    }

    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let info = self.find(reference)?;
        let last = info.names.len() <= 1 || info.digest.starts_with(reference);
        if last && in_use.contains(&info.digest) {
            return Err(StorageError::InUse { name: reference.to_owned(), users: "VMs".to_owned() });
        }
        let mut images = lock(&self.shared.images);
        if last {
            let path = self.image_path(&info.digest);
            fs::remove_file(&path).map_err(io("removing", &path))?;
            images.remove(&info.digest);
        } else if let Some(image) = images.get_mut(&info.digest) {
            image.names.retain(|name| name != reference);
        }
        Ok(())
    }

    async fn remove_image_name(&self, name: &str) -> Result<(), StorageError> {
        let info = self.find(name)?;
        if let Some(image) = lock(&self.shared.images).get_mut(&info.digest) {
            image.names.retain(|other| other != name);
        }
        Ok(())
    }

    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let mut freed = 0;
        lock(&self.shared.images).retain(|digest, image| {
            let keep = !image.names.is_empty() || in_use.contains(digest);
            if !keep && fs::remove_file(self.image_path(digest)).is_ok() {
                freed += image.size;
            }
            keep
        });
        Ok(freed)
    }

    async fn verify_all(&self, _progress: Progress) -> Result<Vec<String>, StorageError> {
        let mut wrong = Vec::new();
        for image in self.images().await?.found {
            if let Err(error) = self.image(&image.digest).await {
                wrong.push(error.to_string());
            }
        }
        Ok(wrong)
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
