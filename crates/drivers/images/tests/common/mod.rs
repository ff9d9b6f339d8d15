//! A store in a temporary directory, and archives to feed it.
#![allow(dead_code, reason = "every test program uses its own part of this")]

pub(crate) mod oci;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_conformance::fixtures::{Frozen, work_in_progress};
use microvm_driver_images::{AgentSource, ArchiveLimits, Images, ImagesConfig};
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource};
use microvm_ports::{ImageStore, Progress, StorageError};
use tar::{Builder, EntryType, Header};

/// A store that goes with its directory.
pub(crate) struct Home {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) storage: Images,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::with(ArchiveLimits::default())
    }

    pub(crate) fn with(limits: ArchiveLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = open(Utf8Path::from_path(directory.path()).unwrap().join("store"), limits).unwrap();
        Self { directory, storage }
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.directory.path()).unwrap().join(name)
    }

    /// Names of work in progress that is there right now.
    pub(crate) fn work(&self) -> Vec<String> {
        work_in_progress(&self.path("store"))
    }

    pub(crate) async fn add_path(&self, name: &str, path: &Utf8Path) -> Result<ImageInfo, StorageError> {
        let source = ImageSource::Path { path: path.to_owned() };
        self.storage.add_image(name, &source, &[], &ImageConfig::default(), Progress::ignored()).await
    }

    pub(crate) async fn add_bytes(&self, name: &str, bytes: &[u8]) -> Result<ImageInfo, StorageError> {
        let path = self.path("archive");
        std::fs::write(&path, bytes).unwrap();
        self.add_path(name, &path).await
    }
}

pub(crate) fn open(root: Utf8PathBuf, limits: ArchiveLimits) -> Result<Images, StorageError> {
    let agent = AgentSource::Bytes(Arc::from(&b"the agent"[..]));
    Images::open(ImagesConfig { limits, ..ImagesConfig::new(root, agent) }, Arc::new(Frozen))
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Appends an entry with any name whatever, unchecked.
pub(crate) fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

pub(crate) fn file(tar: &mut Builder<Vec<u8>>, name: &str, content: &[u8]) {
    entry(tar, EntryType::Regular, name.as_bytes(), b"", content);
}

/// A small sound archive.
pub(crate) fn small_tar() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Directory, b"etc/", b"", b"");
    file(&mut tar, "etc/name", b"value");
    tar.into_inner().unwrap()
}

/// Extracts an image with `fsck.erofs`, a reader that is not ours; `None`, and a printed reason, without it.
pub(crate) fn extract(image: &Utf8Path) -> Option<tempfile::TempDir> {
    let target = tempfile::tempdir().unwrap();
    let run = std::process::Command::new("fsck.erofs")
        .arg(format!("--extract={}", target.path().join("root").display()))
        .arg(image)
        .output();
    match run {
        Err(_) => {
            println!("SKIP: fsck.erofs is not installed (package erofs-utils)");
            None
        }
        Ok(output) => {
            assert!(
                output.status.success(),
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            Some(target)
        }
    }
}
