//! Images, kernels and the files of VMs.

use std::collections::BTreeMap;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::Listed;
pub use microvm_types::template::DiskFormat;
use microvm_types::{Action, ErrorKind, Remedy, VmId};
use serde::{Deserialize, Serialize};

use crate::guest::ByteStream;
use crate::hypervisor::{DeviceDiscovery, MachineDisk};
use crate::progress::Progress;

/// File system of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// EROFS, uncompressed.
    Erofs,
    /// ext4.
    Ext4,
}

/// What an image says about running programs in it (the OCI image configuration, where there was one).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables of every command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Default user; empty: root.
    #[serde(default)]
    pub user: String,
    /// Default working directory; empty: the user's home.
    #[serde(default)]
    pub working_directory: String,
    /// Entry point of an OCI image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments of an OCI image.
    #[serde(default)]
    pub command: Vec<String>,
}

impl ImageConfig {
    /// This configuration with another over it; empty means unsaid. An entry point that is said takes default arguments of
    /// the one before away, as in a Dockerfile: they are none of its.
    #[must_use]
    pub fn with(mut self, over: &Self) -> Self {
        self.environment.extend(over.environment.clone());
        for (base, over) in
            [(&mut self.user, &over.user), (&mut self.working_directory, &over.working_directory)]
        {
            if !over.is_empty() {
                base.clone_from(over);
            }
        }
        if !over.entrypoint.is_empty() {
            self.entrypoint.clone_from(&over.entrypoint);
            self.command.clear();
        }
        if !over.command.is_empty() {
            self.command.clone_from(&over.command);
        }
        self
    }
}

/// One image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// SHA-256 over the files and the configuration, as `sha256:` and 64 hexadecimal characters. Images that differ in
    /// either differ in it. Images made before this was so keep the SHA-256 of their file system alone.
    pub digest: String,
    /// Names that point to it.
    pub names: Vec<String>,
    /// File system it is written in.
    pub file_system: FileSystem,
    /// Size of the file in bytes.
    pub size: u64,
    /// When it was made, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// Where it came from, in a few words.
    pub source: String,
    /// How programs run in it.
    pub config: ImageConfig,
}

/// An image ready for use: its file was verified against its digest.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// What it is.
    pub info: ImageInfo,
    /// Its file.
    pub path: Utf8PathBuf,
}

/// Where a new image comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ImageSource {
    /// Debian packages, put together by `mmdebstrap` from the host's own package sources.
    Debian {
        /// Release name, for example `bookworm`.
        suite: String,
        /// Packages on top of the minimal system.
        packages: Vec<String>,
    },
    /// A folder, an OCI layout folder, a `docker save` archive or a plain tar (compressed or not) on this host: found
    /// out by looking.
    Path {
        /// Absolute path on the host.
        path: Utf8PathBuf,
    },
    /// An image of a registry, by reference.
    Registry {
        /// `host[:port]/name[:tag][@digest]`.
        reference: String,
        /// Speak plain HTTP; only for registries on loopback.
        plain_http: bool,
        /// Authorities (PEM) whose certificates are trusted besides those that the host trusts.
        authorities: Option<String>,
    },
}

/// A file that an image recipe puts in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its text.
    #[serde(default)]
    pub content: Option<String>,
    /// Instead of `content`: a file on the host, absolute, or relative to the recipe.
    #[serde(default)]
    pub source: Option<String>,
    /// Permission bits in octal, for example "0755".
    #[serde(default)]
    pub mode: Option<String>,
}

/// One kernel in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Its name: `distribution`, `built`, or the user's.
    pub name: String,
    /// Release, as `uname -r` shows it.
    pub release: String,
    /// How it finds its devices.
    pub discovery: DeviceDiscovery,
    /// SHA-256 of the kernel file in hexadecimal.
    pub sha256: String,
    /// Size of the kernel file in bytes.
    pub size: u64,
    /// When it was put there, milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: i64,
    /// Where it came from, in a few words.
    pub source: String,
    /// Whether it is what `default` means now.
    pub is_default: bool,
}

/// A kernel ready for use, verified, with the initial file system that holds our agent.
#[derive(Debug, Clone)]
pub struct ResolvedKernel {
    /// What it is.
    pub info: KernelInfo,
    /// The kernel image.
    pub path: Utf8PathBuf,
    /// Its initial file system: the agent as `/init`, and the modules this kernel needs.
    pub initramfs: Utf8PathBuf,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KernelSource {
    /// The distribution's cloud kernel package.
    Distribution,
    /// Built from the distribution's source package with our configuration.
    Build,
    /// A file of the user's: bzImage or vmlinux with virtio-mmio, virtio-blk, virtio-console, EROFS, ext4 and
    /// overlayfs built in.
    File {
        /// Absolute path on the host.
        path: Utf8PathBuf,
        /// How it finds its devices.
        discovery: DeviceDiscovery,
    },
}

/// The files of one VM.
#[derive(Debug, Clone)]
pub struct VmFiles {
    /// Directory of this VM.
    pub directory: Utf8PathBuf,
    /// The disk that holds all it writes.
    pub scratch: MachineDisk,
    /// Further writable disks that it has copies of, or that were branched: to be used instead of the user's files.
    pub own: Vec<MachineDisk>,
}

/// Why storage refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No image of that name or digest.
    #[error("no image is called `{0}`")]
    UnknownImage(String),
    /// No kernel of that name.
    #[error("no kernel is called `{0}`")]
    UnknownKernel(String),
    /// There is no kernel at all that could be the default.
    #[error("there is no kernel: VMs boot with one of this host, whatever their image has")]
    NoKernel,
    /// No snapshot of that id.
    #[error("there is no snapshot `{0}`")]
    UnknownSnapshot(String),
    /// A stored file is not what was stored.
    #[error("{what} is damaged ({detail}): remove it and build or import it again")]
    Damaged {
        /// Which thing.
        what: String,
        /// What was expected and what was found.
        detail: String,
    },
    /// The input is not what it should be: an archive with an entry that leaves its root, a recipe with a mistake …
    #[error("{what} cannot be used: {detail}")]
    BadInput {
        /// Which input.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Still used by VMs.
    #[error("`{name}` is in use by {users}: delete those VMs first, or use --force where it is offered")]
    InUse {
        /// Which thing.
        name: String,
        /// By whom.
        users: String,
    },
    /// A disk file of the user's cannot be given what its VM wrote.
    #[error(
        "what the VM wrote to its disk could not be written back to {path}: {reason}; end that use and try again, or move the file away to give up what the VM wrote"
    )]
    NotWrittenBack {
        /// The user's file.
        path: Utf8PathBuf,
        /// Why not.
        reason: String,
    },
    /// A name that is taken.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
    /// The disk is full, or will be.
    #[error(
        "no space left on {path} while {action}: {needed} more are needed; free some space and try again"
    )]
    DiskFull {
        /// File system by a path on it.
        path: Utf8PathBuf,
        /// What was being done.
        action: String,
        /// How much, for people.
        needed: String,
    },
    /// All VMs together would take more of the disk than they may.
    #[error(
        "{action} needs {needed} more, and the VMs and snapshots of this root hold {held} of the {limit} that they may take together: delete some, or raise the disk limit of the server"
    )]
    OverDiskLimit {
        /// What was being done.
        action: String,
        /// How much it needs, for people.
        needed: String,
        /// How much is held, for people.
        held: String,
        /// How much may be held, for people.
        limit: String,
    },
    /// A tool that is needed is not installed.
    #[error("`{tool}` was not found: install the package `{package}`")]
    ToolMissing {
        /// Program looked for.
        tool: String,
        /// Debian package that has it.
        package: String,
    },
    /// A tool ran and failed.
    #[error("`{tool}` failed ({status}): {detail}")]
    ToolFailed {
        /// Program that was run.
        tool: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        detail: String,
    },
    /// A registry refused or failed.
    #[error("the registry answered: {0}")]
    Registry(String),
    /// Reading or writing failed.
    #[error("{action} {path} failed: {cause}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: Utf8PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl StorageError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownImage(_) | Self::UnknownKernel(_) | Self::NoKernel | Self::UnknownSnapshot(_) => {
                ErrorKind::NotFound
            }
            Self::Damaged { .. } | Self::Io { .. } | Self::ToolFailed { .. } => ErrorKind::Internal,
            Self::BadInput { .. } => ErrorKind::Invalid,
            Self::InUse { .. } | Self::NameTaken(_) | Self::NotWrittenBack { .. } => ErrorKind::Conflict,
            Self::DiskFull { .. } | Self::OverDiskLimit { .. } => ErrorKind::Exhausted,
            Self::ToolMissing { .. } => ErrorKind::Unsupported,
            Self::Registry(_) => ErrorKind::Unavailable,
        }
    }

    /// What can be done about it.
    #[must_use]
    pub fn remedies(&self) -> Vec<Remedy> {
        match self {
            Self::UnknownImage(_) => {
                vec![Action::ListImages.any(), Action::BuildImage.any(), Action::PullImage.any()]
            }
            Self::UnknownKernel(_) => vec![Action::ListKernels.any()],
            Self::NoKernel => vec![Action::TakeDistributionKernel.any(), Action::BuildKernel.any()],
            Self::UnknownSnapshot(_) => vec![Action::ListSnapshots.any()],
            _ => Vec::new(),
        }
    }
}

/// Immutable root file systems, content-addressed. An image is there whole or not at all.
#[async_trait]
pub trait ImageStore: Send + Sync {
    /// All images, newest first; images and names that cannot be read beside them.
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError>;

    /// Finds an image by name or digest (whole, or `sha256:` and at least 12 characters) and verifies its file.
    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError>;

    /// Makes an image of `source` and points `name` to it (away from what it pointed to before). `files` are put in on
    /// top; `config` is merged over what the source says. If the future is dropped nothing is left behind.
    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError>;

    /// Makes an image of a tar stream (for example the root of a guest) and points `name` to it.
    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError>;

    /// Removes a name, and the image with its last name. `in_use`: digests that VMs depend on; those are refused.
    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError>;

    /// Removes images without a name that are not in `in_use`, and leftovers of interrupted work; returns the bytes freed.
    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError>;

    /// Verifies every image and kernel in full; returns what is wrong, empty if nothing.
    async fn verify_all(&self, progress: Progress) -> Result<Vec<String>, StorageError>;
}

/// Kernels.
#[async_trait]
pub trait KernelStore: Send + Sync {
    /// All kernels by name; those that cannot be read beside them.
    async fn kernels(&self) -> Result<Listed<KernelInfo>, StorageError>;

    /// Finds a kernel by name (`default`: `built` if there is one, else `distribution`), verifies it, and makes its
    /// initial file system if the agent has changed since.
    async fn kernel(&self, name: &str) -> Result<ResolvedKernel, StorageError>;

    /// Whether a kernel can mount folders of the host (9P over virtio), as far as can be seen from here: `true` where that
    /// is not known.
    async fn mounts_shares(&self, name: &str) -> Result<bool, StorageError>;

    /// Puts a kernel there, replacing one of the same name. If the future is dropped nothing is left behind.
    async fn add_kernel(
        &self,
        name: &str,
        source: &KernelSource,
        progress: Progress,
    ) -> Result<KernelInfo, StorageError>;

    /// Removes a kernel. Running VMs are not harmed: their memory holds it.
    async fn remove_kernel(&self, name: &str) -> Result<(), StorageError>;
}

/// The room that VMs grow in: of their file system, and of the limit for all of them if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Files of VMs.
#[async_trait]
pub trait VmStorage: Send + Sync {
    /// Makes the directory and the scratch disk of a VM, or nothing at all.
    async fn create_vm_files(&self, id: &VmId, disk_mib: u32) -> Result<VmFiles, StorageError>;

    /// Makes the directory of a VM that may be made later, for a VMM that is started before: [`VmStorage::create_vm_files`]
    /// and [`crate::SnapshotStore::create_vm_files_from`] fill it, [`VmStorage::remove_vm_files`] removes it. To
    /// [`VmStorage::vm_directories`] it is one like others.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and others; nothing is left then.
    async fn reserve_vm_directory(&self, id: &VmId) -> Result<Utf8PathBuf, StorageError>;

    /// Notes that the VM has been reported as made. Until then its directory is that of a creation that may have been cut
    /// off, and [`VmStorage::is_unfinished`]. Doing it again is fine.
    async fn finish_vm_files(&self, id: &VmId) -> Result<(), StorageError>;

    /// Whether the directory of a VM is what an interrupted creation or removal left: the only ones that may be removed
    /// without a record that says so. One made by an older version never is.
    async fn is_unfinished(&self, id: &VmId) -> Result<bool, StorageError>;

    /// The files of a VM made earlier.
    async fn vm_files(&self, id: &VmId) -> Result<VmFiles, StorageError>;

    /// Removes all files of a VM; nothing there is fine. The directory vanishes first from sight (renamed), so that a
    /// crash in the middle leaves only garbage that the next start removes.
    async fn remove_vm_files(&self, id: &VmId) -> Result<(), StorageError>;

    /// Gives the user's disk files what the VM wrote to those disks since they were branched; the VM writes to the files
    /// themselves again afterwards. It has no machine. Interrupted, it can be done again; nothing to do is fine.
    ///
    /// # Errors
    /// [`StorageError::NotWrittenBack`] if somebody else uses or has changed a file: nothing was written to it, and what
    /// the VM wrote is kept. The same for a file that is not there, unless `give_up_missing`: then it is passed over, and
    /// what the VM wrote is lost.
    async fn write_back(&self, id: &VmId, give_up_missing: bool) -> Result<(), StorageError>;

    /// Ids of all VM directories, known to the store or not; leftovers of interrupted work are removed on the way.
    async fn vm_directories(&self) -> Result<Vec<VmId>, StorageError>;

    /// Where the directory of a VM is or would be.
    fn vm_directory(&self, id: &VmId) -> Utf8PathBuf;

    /// The immutable all-zero memory file of so many MiB, made if missing. Takes no space on disk.
    async fn zero_memory(&self, memory_mib: u32) -> Result<Utf8PathBuf, StorageError>;

    /// Examines a disk file of the user's: that it exists, can be opened, and has the `known` format. With `None` its
    /// first bytes tell; a guest may have written them, so this is done once per VM, before the VM has the disk. A file
    /// that is known to be raw is raw whatever it begins with.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if it is no such disk, or a qcow2 file that names other files.
    async fn inspect_disk(
        &self,
        path: &Utf8Path,
        known: Option<DiskFormat>,
    ) -> Result<DiskFormat, StorageError>;

    /// The path of a disk file of the user's without symbolic links: what the file's name leads to is chosen once.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if it is not there.
    async fn real_disk_path(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError>;

    /// Examines a folder of the host that a guest is to see; returns its real path, without symbolic links. Refused: what
    /// is not a folder, a folder of the kernel's, and whatever shows the store itself to a guest.
    async fn inspect_folder(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StorageError>;

    /// Bytes that can still be written to the file system of all VMs, and its size.
    async fn space(&self) -> Result<Space, StorageError>;

    /// Bytes that the files of a VM take on disk.
    async fn vm_disk_usage(&self, id: &VmId) -> Result<u64, StorageError>;
}
