//! Whether a process works for a VM directory.
//!
//! A record alone does not say so: whoever copies a root copies `process.json` and the rows of its database with it, and
//! the machine they name is that of the other root.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use camino::Utf8Path;

/// A file, wherever it is mounted.
type FileIdentity = (u64, u64);

/// Levels below a VM directory that are looked at.
const LEVELS: u32 = 3;

/// What can be seen of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// It is in the directory, or has a file of it open.
    Here,
    /// It has neither.
    Elsewhere,
    /// This user may not look, or it has just ended.
    Unknown,
}

/// Whom the first of these processes that can be told belongs to; a VMM and its supervisor belong to the same.
pub(crate) fn of_any(pids: &[i32], directory: &Utf8Path) -> Belongs {
    let files = files_of(directory.as_std_path());
    let all: Vec<Belongs> = pids.iter().map(|pid| of(*pid, directory, &files)).collect();
    for found in [Belongs::Here, Belongs::Unknown] {
        if all.contains(&found) {
            return found;
        }
    }
    Belongs::Elsewhere
}

fn of(pid: i32, directory: &Utf8Path, files: &HashSet<FileIdentity>) -> Belongs {
    let process = Path::new("/proc").join(pid.to_string());
    match is_in(&process, directory, files) {
        Ok(true) => Belongs::Here,
        Ok(false) => Belongs::Elsewhere,
        Err(_) => Belongs::Unknown,
    }
}

fn is_in(process: &Path, directory: &Utf8Path, files: &HashSet<FileIdentity>) -> io::Result<bool> {
    // The link leads to the file itself, also out of another mount namespace, and says where it was when it is removed.
    let cwd = process.join("cwd");
    let named = fs::read_link(&cwd)?;
    let named = named.to_string_lossy();
    if fs::metadata(&cwd).is_ok_and(|found| files.contains(&(found.dev(), found.ino())))
        || named.strip_suffix(" (deleted)") == Some(directory.as_str())
    {
        return Ok(true);
    }
    for entry in fs::read_dir(process.join("fd"))? {
        // One that was closed meanwhile is not there.
        let Ok(found) = fs::metadata(entry?.path()) else { continue };
        if files.contains(&(found.dev(), found.ino())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directory and what is in it. Files with several names (those shared with other VMs, or with a copy of the root made
/// by hard links) prove nothing.
fn files_of(directory: &Path) -> HashSet<FileIdentity> {
    let mut files = HashSet::new();
    if let Ok(found) = fs::metadata(directory) {
        files.insert((found.dev(), found.ino()));
    }
    gather(directory, LEVELS, &mut files);
    files
}

fn gather(directory: &Path, levels: u32, files: &mut HashSet<FileIdentity>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            files.insert((found.dev(), found.ino()));
            if levels > 1 {
                gather(&entry.path(), levels - 1, files);
            }
        } else if found.is_file() && found.nlink() == 1 {
            files.insert((found.dev(), found.ino()));
        }
    }
}
