//! Settings of the store of images and kernels.

use camino::Utf8PathBuf;

/// Source of the guest agent's program.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// A static program on this host. It may be replaced while we run; the next start of a VM uses the new one.
    Path(Utf8PathBuf),
    /// The program itself.
    Bytes(std::sync::Arc<[u8]>),
}

/// Limits of an image and of the archives it comes from, which may be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Entries in one image; each costs about 300 bytes of memory while the image is made.
    pub entries: usize,
    /// Bytes of all files as they show themselves, holes included.
    pub bytes: u64,
    /// Bytes of memory that names, links, attributes and maps of sparse files may take while images are made, of all images
    /// that are being made together.
    pub memory: usize,
}

impl Default for ArchiveLimits {
    /// Two million entries, 256 GiB, 768 MiB of memory: enough for so many entries with usual names.
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 256 << 30, memory: 768 << 20 }
    }
}

/// Settings of the store of images and kernels.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Directory of all files; made if missing.
    pub root: Utf8PathBuf,
    /// The guest agent put into every initial file system.
    pub agent: AgentSource,
    /// Limits for archives.
    pub limits: ArchiveLimits,
}

impl ImagesConfig {
    /// Settings with the usual limits.
    #[must_use]
    pub fn new(root: impl Into<Utf8PathBuf>, agent: AgentSource) -> Self {
        Self { root: root.into(), agent, limits: ArchiveLimits::default() }
    }
}
