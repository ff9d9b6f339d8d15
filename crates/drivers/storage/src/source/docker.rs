//! Archives that hold an image in pieces: `docker save`, or an OCI layout packed as tar.
//!
//! The pieces are written under numbers of ours into the work directory; their names stay in memory.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use serde::Deserialize;
use tar::EntryType;

use super::builder::Builder;
use super::compression::decompress;
use super::oci::{self, Checked, Pieces};
use super::path::open;
use super::tar_image::{Whiteouts, add_tar};
use super::tar_reader::TarReader;
use crate::base::error::{bad_input, io_error};
use crate::base::files::{is_sha256, make_directory, require_space};
use crate::base::workspace::Workspace;

/// More pieces than any image has.
const PIECES_MAX: usize = 10_000;
/// Links among pieces that are followed.
const LINKS_MAX: u32 = 8;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

/// Whether a name could be that of a piece: what lies in folders named by a digest, or in `blobs`.
pub(super) fn is_part(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let first = name.split('/').next().unwrap_or_default();
    first == "blobs"
        || is_sha256(first)
        || first.strip_suffix(".json").is_some_and(is_sha256)
        || first.strip_suffix(".tar").is_some_and(is_sha256)
}

/// Takes in the only image of an archive; returns what the archive was.
pub(crate) fn add_archive(
    builder: &mut Builder,
    workspace: &Workspace,
    path: &Utf8Path,
) -> Result<&'static str, StorageError> {
    let pieces = spread(builder, workspace, path)?;
    let what = path.as_str();
    if pieces.has("oci-layout") && pieces.has("index.json") {
        oci::add_image(builder, what, &pieces)?;
        return Ok("OCI archive");
    }
    let listed: Vec<SavedImage> = serde_json::from_slice(&pieces.small("manifest.json")?)
        .map_err(|error| bad_input(what, format!("its manifest.json cannot be read: {error}")))?;
    let [image] = &listed[..] else {
        return Err(bad_input(what, format!("it holds {} images; save exactly one", listed.len())));
    };
    let config = oci::read_config(what, &pieces.small(&image.config)?)?;
    if config.diff_ids.len() != image.layers.len() {
        return Err(bad_input(what, "its configuration and its manifest disagree on the number of layers"));
    }
    for (layer, diff_id) in image.layers.iter().zip(&config.diff_ids) {
        builder.tree.next_layer();
        // There are no digests of the packed layers, but the configuration has those of the unpacked ones.
        let mut checked = Checked::new(decompress(what, pieces.open(layer)?)?);
        add_tar(builder, what, &mut checked, Whiteouts::Oci)?;
        checked.finish(what, layer, diff_id, None)?;
    }
    builder.config = config.image;
    Ok("docker archive")
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
    let mut tar = TarReader::new(what, reader);
    let mut pieces = SpreadPieces { what: what.to_owned(), files: BTreeMap::new(), links: BTreeMap::new() };
    while let Some(entry) = tar.next_entry()? {
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        let name = normal(&name);
        match entry.kind {
            EntryType::Regular | EntryType::Continuous => {
                require_space(&directory, entry.size, "unpacking the archive")?;
                let file = directory.join(pieces.files.len().to_string());
                let mut output = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&file)
                    .map_err(io_error("creating", &file))?;
                io::copy(&mut tar, &mut output).map_err(io_error("writing", &file))?;
                pieces.files.insert(name, file);
            }
            EntryType::Symlink | EntryType::Link => {
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let base = if entry.kind == EntryType::Symlink {
                    name.rsplit_once('/').map_or("", |(folder, _)| folder)
                } else {
                    ""
                };
                pieces.links.insert(name.clone(), normal(&format!("{base}/{target}")));
            }
            _ => {}
        }
        if pieces.files.len() + pieces.links.len() > PIECES_MAX {
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
