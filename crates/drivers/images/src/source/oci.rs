//! OCI images: index, manifest, configuration, layers. Every piece is held against its digest and size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, errno};
use microvm_durable::files::{hex, is_sha256, sha256};
use microvm_ports::StorageError;
use microvm_ports::storage::ImageConfig;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::builder::Builder;
pub(super) use super::choice::choose;
use super::choice::{Platform, architecture, choose_tagged};
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar};

/// Largest manifest or configuration that is read (registries allow 4 MiB).
pub(super) const SMALL_MAX: u64 = 4 << 20;
/// Indexes inside indexes that are followed.
const DEPTH_MAX: u32 = 4;
/// Kinds of configurations of images.
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
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
    pub(super) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) artifact_type: Option<String>,
}

/// Builders write `null` for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An index or a manifest: which one shows in what it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Document {
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
    /// Only manifests of the first schema have these.
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<RunConfig>,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RootFs,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    history: Vec<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// Words as a list, or one in place of a list, as old builders have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::One(word) => vec![word],
            Words::Many(words) => words,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    labels: Option<serde_json::Value>,
}

/// Content of a configuration file.
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

/// Pieces in a folder: an OCI layout, or a `docker save` archive that was unpacked.
pub(super) struct Folder<'a>(pub(super) &'a Utf8Path);

/// A folder as `skopeo copy … dir:` writes it: pieces lie in it under their digests, manifests with an ending.
pub(super) struct PlainFolder<'a>(pub(super) &'a Utf8Path);

impl Pieces for PlainFolder<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, StorageError> {
        let name = name.strip_prefix("blobs/sha256/").unwrap_or(name);
        let folder = Folder(self.0);
        // The first error counts: it names the piece as the image does.
        folder.open(name).or_else(|error| folder.open(&format!("{name}.manifest.json")).map_err(|_| error))
    }
}

impl Pieces for Folder<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, StorageError> {
        let path: Utf8PathBuf = self.0.join(name);
        // A link would lead out of the folder, and a FIFO would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path.as_std_path(), flags, Mode::empty()) {
            Ok(descriptor) => Ok(Box::new(File::from(descriptor))),
            Err(rustix::io::Errno::NOENT) => {
                Err(bad_input(self.0.as_str(), format!("`{name}` is missing in it")))
            }
            Err(rustix::io::Errno::LOOP) => {
                let detail = format!(
                    "`{name}` is a symbolic link, which may lead out of it: copy it with `cp -RL` and import the copy"
                );
                Err(bad_input(self.0.as_str(), detail))
            }
            Err(error) => Err(errno("opening", &path)(error)),
        }
    }
}

/// Takes in the image of a layout folder; `tag` says which, where there are several.
pub(crate) fn add_layout(
    builder: &mut Builder,
    what: &str,
    folder: &Utf8Path,
    tag: Option<&str>,
) -> Result<(), StorageError> {
    add_image(builder, what, &Folder(folder), tag)
}

/// Takes in the image for this machine.
pub(super) fn add_image(
    builder: &mut Builder,
    what: &str,
    pieces: &dyn Pieces,
    tag: Option<&str>,
) -> Result<(), StorageError> {
    let index = parse(what, &pieces.small("index.json")?)?;
    let Some(manifests) = &index.manifests else {
        return Err(bad_input(what, "its index.json is not an index of images"));
    };
    let chosen = choose_tagged(what, manifests, tag)?;
    let document = parse(what, &small_checked(what, pieces, chosen)?)?;
    add_document(builder, what, pieces, document)
}

/// Takes in the image of a manifest, or the one for this machine of an index.
pub(super) fn add_document(
    builder: &mut Builder,
    what: &str,
    pieces: &dyn Pieces,
    mut document: Document,
) -> Result<(), StorageError> {
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
        let old = document.fs_layers.is_some();
        let detail = if old {
            "its manifest is of the schema of 2016 (version 1); save it with a tool of today"
        } else {
            "its manifest has no configuration or no layers"
        };
        return Err(bad_input(what, detail));
    };
    if layers.len() > LAYERS_MAX {
        return Err(bad_input(
            what,
            format!("it has {} layers; at most {LAYERS_MAX} are taken", layers.len()),
        ));
    }
    // A manifest may be that of anything: a chart, a signature, a module.
    if !matches!(&*config.media_type, "" | OCI_CONFIG | DOCKER_CONFIG) {
        let kind = config.media_type.escape_debug();
        return Err(bad_input(what, format!("it is no image of a file system, but `{kind}`")));
    }
    if let Some(layer) = layers.iter().find(|layer| !is_tar(&layer.media_type)) {
        let kind = layer.media_type.escape_debug();
        return Err(bad_input(
            what,
            format!("it has a layer of the kind `{kind}`, which is no tar that can be read"),
        ));
    }
    let config = read_config(what, &small_checked(what, pieces, &config)?)?;
    if !config.diff_ids.is_empty() && config.diff_ids.len() != layers.len() {
        return Err(bad_input(what, "its configuration and its manifest disagree on the number of layers"));
    }
    for (number, layer) in layers.iter().enumerate() {
        builder.tree.next_layer();
        add_layer(builder, what, pieces, layer, config.diff_ids.get(number).map(String::as_str))?;
    }
    builder.config = config.image;
    Ok(())
}

/// True if a layer of this kind is a tar, packed in whatever way.
fn is_tar(media_type: &str) -> bool {
    media_type.is_empty() || (media_type.contains("tar") && !media_type.ends_with("+encrypted"))
}

/// Takes in a layer, whose digest when unpacked is `diff_id` if the configuration says it.
fn add_layer(
    builder: &mut Builder,
    what: &str,
    pieces: &dyn Pieces,
    layer: &Descriptor,
    diff_id: Option<&str>,
) -> Result<(), StorageError> {
    let name = blob(what, &layer.digest)?;
    let opened = pieces.open(&name).map_err(|error| {
        // Some tools do not copy it, others do.
        if layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable") {
            return bad_input(
                what,
                "it has a layer that may not be distributed, which is fetched from elsewhere",
            );
        }
        error
    })?;
    // One byte more than there may be shows a piece that is too long.
    let mut checked = Checked::new(opened.take(layer.size.saturating_add(1)));
    let result = decompress(what, &mut checked).and_then(|reader| {
        // The configuration names what the layers unpack to, and the image is known by the configuration.
        let mut unpacked = Checked::new(reader);
        add_tar(builder, what, &mut unpacked, Whiteouts::Oci)?;
        diff_id.map_or(Ok(()), |diff_id| unpacked.finish(what, &layer.digest, diff_id, None))
    });
    // A piece that is not what its digest says is the better explanation of an archive that cannot be read.
    checked.finish(what, &layer.digest, &layer.digest, Some(layer.size))?;
    result
}

/// Parses an index or a manifest.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Document, StorageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| bad_input(what, format!("its index or manifest cannot be read: {error}")))
}

/// Reads a configuration file.
pub(super) fn read_config(what: &str, bytes: &[u8]) -> Result<OciConfig, StorageError> {
    let file: ConfigFile = serde_json::from_slice(bytes)
        .map_err(|error| bad_input(what, format!("its configuration cannot be read: {error}")))?;
    let platform = Platform { architecture: file.architecture, os: file.os };
    // Not every builder says it.
    if !platform.architecture.is_empty() && !platform.os.is_empty() && !platform.is_ours() {
        let (os, theirs) = (platform.os.escape_debug(), platform.architecture.escape_debug());
        return Err(bad_input(
            what,
            format!("it is an image for {os}/{theirs}, not for linux/{}", architecture()),
        ));
    }
    let is_ours = file.history.iter().any(|step| step["created_by"] == super::EXPORTED_BY);
    let labels = |labels| serde_json::from_value::<BTreeMap<String, String>>(labels).ok();
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
        entrypoint: run.entrypoint.map(Into::into).unwrap_or_default(),
        command: run.cmd.map(Into::into).unwrap_or_default(),
        // Older versions cannot read an image with labels: those of strangers are not kept, and those of exported images come back.
        labels: if is_ours { run.labels.and_then(labels).unwrap_or_default() } else { BTreeMap::new() },
    };
    Ok(OciConfig { image, diff_ids: file.rootfs.diff_ids })
}

/// Path of a piece in a layout.
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
