//! An image from a path: finds out by looking what is there.

use std::fs::File;
use std::io::Read as _;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::canonical;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::builder::Builder;
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar, read_tar};
use super::{docker, folder, oci};

/// Kind of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Archive {
    /// A tree of files.
    Tree,
    /// An image in pieces: OCI layout or `docker save`.
    Image,
}

/// The path and the tag of `PATH:TAG`, where there is nothing whose name is the whole.
fn split_tag(path: &Utf8Path) -> (&Utf8Path, Option<&str>) {
    if path.symlink_metadata().is_ok() {
        return (path, None);
    }
    let mut colons = path.as_str().match_indices(':').map(|(at, _)| path.as_str().split_at(at));
    let found = colons.find(|(before, _)| Utf8Path::new(before).exists());
    found.map_or((path, None), |(before, tag)| (Utf8Path::new(before), Some(&tag[1..])))
}

/// Takes in whatever is at `path`, which may have `:TAG` behind it; returns what it was, in a word or two.
pub(crate) fn add_path(
    builder: &mut Builder,
    workspace: &Workspace,
    path: &Utf8Path,
) -> Result<&'static str, StorageError> {
    if !path.is_absolute() {
        return Err(bad_input(path.as_str(), "its path must be absolute"));
    }
    let (path, tag) = split_tag(path);
    let metadata = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad_input(path.as_str(), "there is nothing at this path"),
        _ => io_error("examining", path)(error),
    })?;
    if metadata.is_dir() {
        let path = canonical(path)?;
        if let Some(kind) = add_pieces(builder, &path, tag)? {
            return Ok(kind);
        }
        no_images(&path, tag, "a folder of files")?;
        builder.progress.step("reading the folder");
        folder::add_folder(builder, &path)?;
        builder.refuse_empty(path.as_str())?;
        return Ok("folder");
    }
    if !metadata.is_file() {
        return Err(bad_input(path.as_str(), "it is neither a folder nor a file"));
    }
    // Whoever has a VM that reads it has asked before.
    if super::disk::look(path)?.is_some() {
        return Err(bad_input(path.as_str(), "it is a disk, whose files only a VM reads"));
    }
    builder.progress.step("reading the archive");
    match look(builder, path)? {
        Archive::Tree => {
            no_images(path, tag, "an archive of files")?;
            add_tar(builder, path.as_str(), decompress(path.as_str(), open(path)?)?, Whiteouts::Plain)?;
            builder.refuse_empty(path.as_str())?;
            Ok("tar")
        }
        Archive::Image => docker::add_archive(builder, workspace, path, tag),
    }
}

pub(super) fn open(path: &Utf8Path) -> Result<File, StorageError> {
    File::open(path).map_err(io_error("opening", path))
}

/// A tag is for what holds images.
fn no_images(path: &Utf8Path, tag: Option<&str>, kind: &str) -> Result<(), StorageError> {
    let refused = |tag| bad_input(path.as_str(), format!("it is {kind}: it holds no image called `{tag}`"));
    tag.map_or(Ok(()), |tag| Err(refused(tag)))
}

/// Takes in the image whose pieces lie in a folder; `None` if it is a folder of files.
fn add_pieces(
    builder: &mut Builder,
    path: &Utf8Path,
    tag: Option<&str>,
) -> Result<Option<&'static str>, StorageError> {
    let what = path.as_str();
    let has = |name: &str| path.join(name).is_file();
    if has("oci-layout") || (has("index.json") && path.join("blobs/sha256").is_dir()) {
        oci::add_layout(builder, what, path, tag)?;
        return Ok(Some("OCI layout"));
    }
    if has("config.json") && path.join("rootfs").is_dir() && is_bundle(path) {
        let detail = "it is a bundle of a container runtime: import the folder `rootfs` in it";
        return Err(bad_input(what, detail));
    }
    if !has("manifest.json") {
        return Ok(None);
    }
    let folder = oci::PlainFolder(path);
    // A manifest of any size may be somebody's file.
    let Ok(manifest) = oci::Pieces::small(&folder, "manifest.json") else { return Ok(None) };
    let version = std::fs::read(path.join("version")).unwrap_or_default();
    if version.starts_with(b"Directory Transport Version:") {
        no_images(path, tag, "a folder with one image")?;
        let document = oci::parse(what, &manifest)?;
        oci::add_document(builder, what, &folder, document)?;
        return Ok(Some("image in a folder"));
    }
    if docker::is_manifest(&manifest) {
        docker::add_saved(builder, what, &oci::Folder(path), tag)?;
        return Ok(Some("docker archive"));
    }
    Ok(None)
}

/// True if `config.json` is that of an OCI runtime.
fn is_bundle(path: &Utf8Path) -> bool {
    let text = std::fs::read(path.join("config.json")).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&text).is_ok_and(|config| config["ociVersion"].is_string())
}

/// Walks over the names of an archive until they cannot be those of an image in pieces, or its index is found.
fn look(builder: &Builder, path: &Utf8Path) -> Result<Archive, StorageError> {
    let what = path.as_str();
    let reader = builder.cancel.reader(decompress(what, open(path)?)?);
    let mut tar = read_tar(reader);
    let (mut index, mut old) = (false, false);
    while let Some(entry) = tar.next_entry().map_err(|error| bad_input(what, error.to_string()))? {
        // Some builders write their names from the root on.
        let start = entry.path.iter().position(|byte| *byte != b'/').unwrap_or(entry.path.len());
        let name = &entry.path[start..];
        let name = name.strip_prefix(b"./").unwrap_or(name);
        match name {
            b"oci-layout" => return Ok(Archive::Image),
            b"manifest.json" => {
                let mut bytes = Vec::new();
                let read = std::io::Read::read_to_end(&mut tar.by_ref().take(oci::SMALL_MAX), &mut bytes);
                read.map_err(|error| bad_input(what, error.to_string()))?;
                return Ok(if docker::is_manifest(&bytes) { Archive::Image } else { Archive::Tree });
            }
            b"index.json" => index = true,
            b"repositories" => old = true,
            b"" => {}
            _ if docker::is_part(name) => old |= name.ends_with(b"/layer.tar"),
            // Some builders call configuration and layers by names of their own. A folder decides nothing, what is in it does.
            _ if entry.kind.is_dir() || !name.contains(&b'/') => {}
            _ if docker::is_old_part(name) => old |= name.ends_with(b"/layer.tar"),
            _ => return Ok(Archive::Tree),
        }
    }
    if index {
        return Ok(Archive::Image);
    }
    if old {
        let detail = "it has pieces of an image, but no manifest.json that puts them together, as those of docker before \
                      1.10: load it with docker, and save it again";
        return Err(bad_input(what, detail));
    }
    Ok(Archive::Tree)
}
