//! OCI images: index, manifest, configuration, layers. Every piece is held against its digest and size.

use std::fs::File;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use microvm_ports::storage::ImageConfig;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::builder::Builder;
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar};
use crate::base::error::{bad_input, errno};
use crate::base::files::{hex, is_sha256, sha256};

/// Largest manifest or configuration that is read (registries allow 4 MiB).
pub(super) const SMALL_MAX: u64 = 4 << 20;
/// Indexes inside indexes that are followed.
const DEPTH_MAX: u32 = 4;
/// Most layers of one image; docker's own limit is 127.
pub(super) const LAYERS_MAX: usize = 1000;

/// A piece by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest: which one shows in what it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Document {
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<RunConfig>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

/// What a configuration file says.
pub(super) struct OciConfig {
    pub(super) image: ImageConfig,
    /// SHA-256 of each unpacked layer.
    pub(super) diff_ids: Vec<String>,
}

/// Pieces of an image by name, as in an OCI layout.
pub(super) trait Pieces {
    /// Opens a piece.
    fn open(&self, name: &str) -> Result<Box<dyn Read>, StorageError>;

    /// Reads a small piece whole.
    fn small(&self, name: &str) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(SMALL_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| bad_input(name, error.to_string()))?;
        if bytes.len() as u64 > SMALL_MAX {
            return Err(bad_input(name, "it is larger than 4 MiB"));
        }
        Ok(bytes)
    }
}

/// An OCI layout in a folder.
struct Folder<'a>(&'a Utf8Path);

impl Pieces for Folder<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, StorageError> {
        let path: Utf8PathBuf = self.0.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path.as_std_path(), flags, Mode::empty()) {
            Ok(descriptor) => Ok(Box::new(File::from(descriptor))),
            Err(rustix::io::Errno::NOENT) => {
                Err(bad_input(self.0.as_str(), format!("`{name}` is missing in it")))
            }
            Err(error) => Err(errno("opening", &path)(error)),
        }
    }
}

/// Takes in the image of a layout folder.
pub(crate) fn add_layout(builder: &mut Builder, what: &str, folder: &Utf8Path) -> Result<(), StorageError> {
    add_image(builder, what, &Folder(folder))
}

/// Takes in the image for this machine.
pub(super) fn add_image(builder: &mut Builder, what: &str, pieces: &dyn Pieces) -> Result<(), StorageError> {
    let mut document = parse(what, &pieces.small("index.json")?)?;
    let mut depth = 0;
    while let Some(manifests) = document.manifests {
        if depth == DEPTH_MAX {
            return Err(bad_input(what, "its indexes are nested too deeply"));
        }
        depth += 1;
        let chosen = choose(what, &manifests)?;
        document = parse(what, &small_checked(what, pieces, chosen)?)?;
    }
    let (Some(config), Some(layers)) = (document.config, document.layers) else {
        return Err(bad_input(what, "its manifest has no configuration or no layers"));
    };
    if layers.len() > LAYERS_MAX {
        return Err(bad_input(
            what,
            format!("it has {} layers; at most {LAYERS_MAX} are taken", layers.len()),
        ));
    }
    let config = read_config(what, &small_checked(what, pieces, &config)?)?;
    for layer in &layers {
        builder.tree.next_layer();
        add_layer(builder, what, pieces, layer)?;
    }
    builder.config = config.image;
    Ok(())
}

fn add_layer(
    builder: &mut Builder,
    what: &str,
    pieces: &dyn Pieces,
    layer: &Descriptor,
) -> Result<(), StorageError> {
    let name = blob(what, &layer.digest)?;
    let mut checked = Checked::new(pieces.open(&name)?.take(layer.size.saturating_add(1)));
    if layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable") {
        return Err(bad_input(
            what,
            "it has a layer that may not be distributed, which is fetched from elsewhere",
        ));
    }
    let result =
        decompress(what, &mut checked).and_then(|reader| add_tar(builder, what, reader, Whiteouts::Oci));
    // A piece that is not what its digest says is the better explanation of an archive that cannot be read.
    checked.finish(what, &layer.digest, &layer.digest, Some(layer.size))?;
    result
}

/// Parses an index or a manifest.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Document, StorageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| bad_input(what, format!("its index or manifest cannot be read: {error}")))
}

/// The manifest for this machine: of the right platform, or the only one that does not say.
pub(super) fn choose<'a>(what: &str, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, StorageError> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
    };
    if let Some(found) = manifests.iter().find(fits) {
        return Ok(found);
    }
    match manifests {
        [only] if only.platform.is_none() => Ok(only),
        _ => {
            let offered: Vec<String> = manifests
                .iter()
                .filter_map(|d| d.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .take(20)
                .collect();
            let offered = if offered.is_empty() {
                format!("{} images without a platform", manifests.len())
            } else {
                offered.join(", ")
            };
            Err(bad_input(
                what,
                format!("it has no single image for linux/{architecture}; it offers {offered}"),
            ))
        }
    }
}

/// Reads a configuration file.
pub(super) fn read_config(what: &str, bytes: &[u8]) -> Result<OciConfig, StorageError> {
    let file: ConfigFile = serde_json::from_slice(bytes)
        .map_err(|error| bad_input(what, format!("its configuration cannot be read: {error}")))?;
    let run = file.config.unwrap_or_default();
    let environment = run
        .env
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let image = ImageConfig {
        environment,
        user: run.user.unwrap_or_default(),
        working_directory: run.working_dir.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        command: run.cmd.unwrap_or_default(),
    };
    Ok(OciConfig { image, diff_ids: file.rootfs.diff_ids })
}

/// Where a layout keeps a piece.
pub(super) fn blob(what: &str, digest: &str) -> Result<String, StorageError> {
    let hash = digest.strip_prefix("sha256:").filter(|hash| is_sha256(hash));
    let hash =
        hash.ok_or_else(|| bad_input(what, format!("`{}` is not a SHA-256 digest", digest.escape_debug())))?;
    Ok(format!("blobs/sha256/{hash}"))
}

fn small_checked(what: &str, pieces: &dyn Pieces, descriptor: &Descriptor) -> Result<Vec<u8>, StorageError> {
    let bytes = pieces.small(&blob(what, &descriptor.digest)?)?;
    check_small(what, &bytes, descriptor)?;
    Ok(bytes)
}

/// Holds a piece that is in memory against its descriptor.
pub(super) fn check_small(what: &str, bytes: &[u8], descriptor: &Descriptor) -> Result<(), StorageError> {
    let found = format!("sha256:{}", sha256(bytes));
    if found != descriptor.digest || bytes.len() as u64 != descriptor.size {
        return Err(mismatch(what, &descriptor.digest, &descriptor.digest, &found));
    }
    Ok(())
}

fn mismatch(what: &str, piece: &str, expected: &str, found: &str) -> StorageError {
    bad_input(
        what,
        format!(
            "the piece {piece} is damaged: its digest should be {expected}, but is {found} (or its size is wrong)"
        ),
    )
}

/// Hashes what is read through it.
pub(super) struct Checked<R> {
    reader: R,
    hasher: Sha256,
    length: u64,
}

impl<R: Read> Checked<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, hasher: Sha256::new(), length: 0 }
    }

    /// Reads the rest and compares.
    pub(super) fn finish(
        mut self,
        what: &str,
        piece: &str,
        digest: &str,
        size: Option<u64>,
    ) -> Result<(), StorageError> {
        io::copy(&mut self, &mut io::sink()).map_err(|error| bad_input(what, error.to_string()))?;
        let found = format!("sha256:{}", hex(&self.hasher.finalize()));
        if found != digest || size.is_some_and(|size| size != self.length) {
            return Err(mismatch(what, piece, digest, &found));
        }
        Ok(())
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.length += count as u64;
        Ok(count)
    }
}
