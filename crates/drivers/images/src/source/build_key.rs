//! The key of a build in the cache: everything that its image depends on, hashed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::hex;
use microvm_ports::StorageError;
use microvm_ports::storage::{Placement, RecipeFile};
use sha2::{Digest, Sha256};

use super::context;
use super::folder::xattrs;
use crate::config::ArchiveLimits;

/// First line of what is hashed; another one when a build makes another image of equal inputs.
const DOMAIN: &str = "microvm build 3";

/// Hashes `text` and the files of the host: names, modes, links, devices, extended attributes and contents, and no times.
pub(crate) fn of(
    text: &str,
    files: &[RecipeFile],
    placements: &[Placement],
    limits: ArchiveLimits,
    cancel: &Cancel,
) -> Result<String, StorageError> {
    let mut budget = Budget { limits, entries: 0, bytes: 0 };
    let mut hasher = Sha256::new();
    part(&mut hasher, DOMAIN.as_bytes());
    part(&mut hasher, text.as_bytes());
    for file in files {
        for field in [Some(&file.path), file.content.as_ref(), file.mode.as_ref()] {
            part(&mut hasher, field.map_or(b"\0", |text| text.as_bytes()));
        }
        if let Some(source) = &file.source {
            tree(&mut hasher, source, &mut budget, cancel)?;
        }
    }
    context::hash(&mut hasher, placements, &mut budget, cancel)?;
    Ok(hex(&hasher.finalize()))
}

/// What may still be read of the host for one build, over all its steps: what is above the limits of an image would be refused in the
/// end, after hours.
pub(crate) struct Budget {
    limits: ArchiveLimits,
    entries: usize,
    bytes: u64,
}

impl Budget {
    /// Takes one entry with so many bytes of content. `what`: the step, or the file of the recipe.
    pub(crate) fn take(&mut self, what: &str, bytes: u64) -> Result<(), StorageError> {
        let ArchiveLimits { entries: most, bytes: most_bytes, .. } = self.limits;
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let over = if self.entries > most {
            format!("{most} entries")
        } else if self.bytes > most_bytes {
            format!("{most_bytes} bytes ({} GiB)", most_bytes >> 30)
        } else {
            return Ok(());
        };
        let detail = format!(
            "all that is to be copied into the image, up to this step, has more than {over}, the limit of an image: leave out \
             what it does not need by .dockerignore, or name less"
        );
        Err(bad_input(what, detail))
    }
}

/// A part with its length, so that parts cannot be shifted into one another.
fn part(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn tree(hasher: &mut Sha256, source: &str, budget: &mut Budget, cancel: &Cancel) -> Result<(), StorageError> {
    let root = PathBuf::from(source);
    let mut pending = vec![root.clone()];
    let mut linked: HashMap<(u64, u64), u64> = HashMap::new();
    while let Some(path) = pending.pop() {
        cancel.check()?;
        let shown = path.to_string_lossy().into_owned();
        let shown = Utf8Path::new(&shown);
        // What is named may be a link to a folder; links in it are links.
        let metadata = if path == root { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let metadata = metadata.map_err(io_error("examining", shown))?;
        budget.take(source, if metadata.is_file() { metadata.len() } else { 0 })?;
        part(hasher, path.strip_prefix(&root).unwrap_or(&path).as_os_str().as_bytes());
        part(hasher, &metadata.mode().to_le_bytes());
        part(hasher, &metadata.rdev().to_le_bytes());
        for xattr in xattrs(&path, shown)? {
            part(hasher, &xattr.name);
            part(hasher, &xattr.value);
        }
        hasher.update([0]);
        if metadata.nlink() > 1 && !metadata.is_dir() {
            // Names of one file get one number, in the order in which they are met.
            let next = linked.len() as u64;
            let number = linked.entry((metadata.dev(), metadata.ino())).or_insert(next);
            part(hasher, &number.to_le_bytes());
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).map_err(io_error("listing", shown))?;
            let mut below: Vec<PathBuf> = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()
                .map_err(io_error("listing", shown))?;
            below.sort_unstable();
            pending.extend(below);
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(io_error("reading the link", shown))?;
            part(hasher, target.as_os_str().as_bytes());
        } else if metadata.is_file() {
            hasher.update(metadata.len().to_le_bytes());
            // What grows meanwhile is not followed.
            let mut file = File::open(&path).map_err(io_error("opening", shown))?.take(metadata.len());
            let mut buffer = vec![0; 1 << 16];
            loop {
                cancel.check()?;
                let count = file.read(&mut buffer).map_err(io_error("reading", shown))?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_attributes_and_devices_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let key = || {
            let source = Some(path.to_str().unwrap().to_owned());
            let file = RecipeFile { path: "/x".to_owned(), content: None, source, mode: None };
            of("", &[file], &[], ArchiveLimits::default(), &Cancel::default()).unwrap()
        };
        for name in ["a", "b", "c"] {
            fs::write(path.join(name), "x").unwrap();
        }
        let mut keys = vec![key()];
        fs::remove_file(path.join("b")).unwrap();
        fs::hard_link(path.join("a"), path.join("b")).unwrap();
        keys.push(key());
        fs::remove_file(path.join("b")).unwrap();
        fs::hard_link(path.join("c"), path.join("b")).unwrap();
        keys.push(key());
        let flags = rustix::fs::XattrFlags::empty();
        for value in [b"1", b"2"] {
            rustix::fs::setxattr(path.join("a"), "user.x", value, flags).unwrap();
            keys.push(key());
        }
        if rustix::process::geteuid().is_root() {
            use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
            for minor in [3, 5] {
                mknodat(CWD, path.join("d"), FileType::CharacterDevice, Mode::RUSR, makedev(1, minor))
                    .unwrap();
                keys.push(key());
                fs::remove_file(path.join("d")).unwrap();
            }
        }
        assert_eq!(key(), keys[4]);
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn limits_are_those_of_all_sources_together_and_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["a", "b"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("x"), [0; 600]).unwrap();
        }
        let source = |name: &str| RecipeFile {
            path: "/x".to_owned(),
            content: None,
            source: Some(path.join(name).to_str().unwrap().to_owned()),
            mode: None,
        };
        let copy = |name: &str| {
            Placement::Copy(microvm_ports::storage::CopyStep {
                title: format!("line {name}: COPY"),
                context: path.to_str().unwrap().to_owned(),
                sources: vec![name.to_owned()],
                destination: "/x".to_owned(),
                ..microvm_ports::storage::CopyStep::default()
            })
        };
        let key = |files: &[RecipeFile], placements: &[Placement], entries, bytes| {
            let limits = ArchiveLimits { entries, bytes, ..ArchiveLimits::default() };
            of("", files, placements, limits, &Cancel::default()).map_err(|error| error.to_string())
        };
        key(&[], &[copy("a"), copy("b")], 2, 1_200).unwrap();
        key(&[source("a"), source("b")], &[], 4, 1_200).unwrap();
        let refused = key(&[], &[copy("a"), copy("b")], 2, 1_199).unwrap_err();
        assert!(refused.contains("line b: COPY") && refused.contains("1199 bytes"), "{refused}");
        let refused = key(&[], &[copy("a"), copy("b")], 1, 1_200).unwrap_err();
        assert!(refused.contains("line b: COPY") && refused.contains("more than 1 entries"), "{refused}");
        let refused = key(&[source("a")], &[copy("b")], 10, 1_199).unwrap_err();
        assert!(refused.contains("line b: COPY"), "{refused}");
        assert!(key(&[source("a"), source("b")], &[], 10, 1_199).unwrap_err().contains("1199 bytes"));
    }
}
