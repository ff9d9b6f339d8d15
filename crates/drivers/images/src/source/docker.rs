//! Archives that hold an image in pieces: `docker save`, or an OCI layout packed as tar.
//!
//! The pieces are written under numbers of ours into the work directory; their names stay in memory.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{is_sha256, make_directory, require_space};
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use serde::Deserialize;
use tar::EntryType;

use super::builder::Builder;
use super::choice::{is_called, no_tag, several};
use super::compression::decompress;
use super::oci::{self, Checked, Pieces};
use super::path::open;
use super::tar_image::{Whiteouts, add_tar, read_tar};

/// More pieces than any image has.
const PIECES_MAX: usize = 10_000;
/// Links among pieces that are followed.
const LINKS_MAX: u32 = 8;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SavedImage {
    config: String,
    /// `null` where there are none.
    layers: Option<Vec<String>>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// True if a name could be that of a piece: what is named by a digest or lies in a folder that is, and what lies in `blobs`.
pub(super) fn is_part(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let first = name.split('/').next().unwrap_or_default();
    let first = first.strip_prefix("sha256:").unwrap_or(first);
    let stem = first.split_once('.').map_or(first, |(stem, _)| stem);
    first == "blobs" || is_sha256(stem)
}

/// True if a name could be that of a piece in a folder that is named in whatever way: one for each layer, as docker wrote them for long.
pub(super) fn is_old_part(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'/');
    let file = (parts.next(), parts.next(), parts.next());
    matches!(file, (Some(_), Some(b"layer.tar" | b"json" | b"VERSION"), None))
}

/// True if this is the `manifest.json` of such an archive, and not somebody's file of that name.
pub(super) fn is_manifest(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Vec<SavedImage>>(bytes).is_ok_and(|images| !images.is_empty())
}

/// Takes in the image of an archive, `tag` saying which; returns what the archive was.
pub(crate) fn add_archive(
    builder: &mut Builder,
    workspace: &Workspace,
    path: &Utf8Path,
    tag: Option<&str>,
) -> Result<&'static str, StorageError> {
    let pieces = spread(builder, workspace, path)?;
    let what = path.as_str();
    // Some builders leave `oci-layout` out.
    if pieces.has("index.json") && (pieces.has("oci-layout") || !pieces.has("manifest.json")) {
        oci::add_image(builder, what, &pieces, tag)?;
        return Ok("OCI archive");
    }
    add_saved(builder, what, &pieces, tag)?;
    Ok("docker archive")
}

/// Takes in an image of a `manifest.json`.
pub(super) fn add_saved(
    builder: &mut Builder,
    what: &str,
    pieces: &dyn Pieces,
    tag: Option<&str>,
) -> Result<(), StorageError> {
    let listed: Vec<SavedImage> = serde_json::from_slice(&pieces.small("manifest.json")?)
        .map_err(|error| bad_input(what, format!("its manifest.json cannot be read: {error}")))?;
    let image = choose(what, &listed, tag)?;
    let config = oci::read_config(what, &pieces.small(&image.config)?)?;
    let layers = image.layers.as_deref().unwrap_or_default();
    if config.diff_ids.len() != layers.len() {
        return Err(bad_input(what, "its configuration and its manifest disagree on the number of layers"));
    }
    for (layer, diff_id) in layers.iter().zip(&config.diff_ids) {
        builder.tree.next_layer();
        // There are no digests of the packed layers, but the configuration has those of the unpacked ones.
        let mut checked = Checked::new(decompress(what, pieces.open(layer)?)?);
        let result = add_tar(builder, what, &mut checked, Whiteouts::Oci);
        // A layer that is not what its digest says is the better explanation of one that cannot be read.
        checked.finish(what, layer, diff_id, None)?;
        result?;
    }
    builder.config = config.image;
    Ok(())
}

fn choose<'a>(
    what: &str,
    listed: &'a [SavedImage],
    tag: Option<&str>,
) -> Result<&'a SavedImage, StorageError> {
    let names = |image: &'a SavedImage| image.repo_tags.iter().flatten().map(String::as_str);
    let meant: Vec<&SavedImage> = match tag {
        None => listed.iter().collect(),
        Some(tag) => listed.iter().filter(|image| names(image).any(|name| is_called(name, tag))).collect(),
    };
    match (&meant[..], tag) {
        ([first, rest @ ..], _) if rest.iter().all(|image| image.config == first.config) => Ok(first),
        ([], Some(tag)) => Err(no_tag(what, tag, listed.iter().flat_map(names))),
        _ => Err(several(what, meant.len(), meant.into_iter().flat_map(names))),
    }
}

/// Pieces by name, as files in the work directory.
struct SpreadPieces {
    what: String,
    files: BTreeMap<String, Utf8PathBuf>,
    links: BTreeMap<String, String>,
}

impl Pieces for SpreadPieces {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, StorageError> {
        let mut name = normal(name);
        for _ in 0..LINKS_MAX {
            if let Some(path) = self.files.get(&name) {
                return Ok(Box::new(open(path)?));
            }
            // Old versions of docker wrote equal layers as links to each other.
            let Some(target) = self.links.get(&name) else { break };
            name = target.clone();
        }
        Err(bad_input(&*self.what, format!("`{}` is missing in it", name.escape_debug())))
    }
}

impl SpreadPieces {
    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }
}

fn spread(builder: &Builder, workspace: &Workspace, path: &Utf8Path) -> Result<SpreadPieces, StorageError> {
    let directory = workspace.join("pieces");
    make_directory(&directory, 0o700)?;
    let what = path.as_str();
    let reader = builder.cancel.reader(decompress(what, open(path)?)?);
    let mut tar = read_tar(reader);
    let unreadable = |error: io::Error| bad_input(what, error.to_string());
    let mut pieces = SpreadPieces { what: what.to_owned(), files: BTreeMap::new(), links: BTreeMap::new() };
    // A name may come twice: the last one counts, as in every tar.
    let mut written = 0;
    while let Some(entry) = tar.next_entry().map_err(unreadable)? {
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        let name = normal(&name);
        match entry.kind {
            EntryType::Regular | EntryType::Continuous => {
                require_space(&directory, entry.size, "unpacking the archive")?;
                let file = directory.join(written.to_string());
                written += 1;
                let mut output = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&file)
                    .map_err(io_error("creating", &file))?;
                io::copy(&mut tar, &mut output).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => unreadable(error),
                    _ => io_error("writing", &file)(error),
                })?;
                pieces.links.remove(&name);
                pieces.files.insert(name, file);
            }
            EntryType::Symlink | EntryType::Link => {
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let base = if entry.kind == EntryType::Symlink {
                    name.rsplit_once('/').map_or("", |(folder, _)| folder)
                } else {
                    ""
                };
                let target = normal(&format!("{base}/{target}"));
                pieces.files.remove(&name);
                pieces.links.insert(name, target);
            }
            _ => {}
        }
        if written + pieces.links.len() > PIECES_MAX {
            return Err(bad_input(what, "it has too many pieces for one image"));
        }
    }
    Ok(pieces)
}

/// A name without `.`, `..` and double slashes; only ever a key of our maps.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
