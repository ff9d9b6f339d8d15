//! Ownership of processes by VM directories.
//!
//! A record alone does not say so: whoever copies a root copies `process.json` and the rows of its database with it, and
//! the machine they name is that of the other root.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use camino::Utf8Path;

/// A file, wherever it is mounted.
type FileIdentity = (u64, u64);

/// Levels below a VM directory that are looked at.
const LEVELS: u32 = 3;

/// Owner of a process, as far as it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// It is in the directory, or has a file of it open.
    Here,
    /// It is in, or has a file open of, the directory of the same VM in another root.
    Elsewhere,
    /// Neither is seen. A VMM that waits for its state has no disk open, and what stands in a cage has no directory of the
    /// host: what is not seen proves nothing. Or this user may not look, or it has just ended.
    Unknown,
}

/// Owner of a VMM and its supervisor, as far as one of them shows it.
pub(crate) fn of_any(pids: &[i32], directory: &Utf8Path) -> Belongs {
    let files = files_of(directory.as_std_path());
    let all: Vec<Belongs> = pids.iter().map(|pid| of(*pid, directory, &files)).collect();
    for found in [Belongs::Here, Belongs::Elsewhere] {
        if all.contains(&found) {
            return found;
        }
    }
    Belongs::Unknown
}

/// The parent of a process: process 1 or a subreaper if that has ended.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in brackets and may hold anything; fields are counted after its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn of(pid: i32, directory: &Utf8Path, files: &HashSet<FileIdentity>) -> Belongs {
    let process = Path::new("/proc").join(pid.to_string());
    let mut links = vec![process.join("cwd")];
    links.extend(fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut elsewhere = false;
    for link in links {
        // One that was closed meanwhile is not there.
        let Ok(named) = fs::read_link(&link) else { continue };
        // The link leads to the file itself, also out of another mount namespace, and says where it was when it is removed.
        let removed = named.to_string_lossy().strip_suffix(" (deleted)").map(PathBuf::from);
        let found = fs::metadata(&link).ok();
        if found.as_ref().is_some_and(|found| files.contains(&(found.dev(), found.ino())))
            || removed.as_ref().is_some_and(|removed| removed.starts_with(directory))
        {
            return Belongs::Here;
        }
        // Of a root that was removed, or moved to another disk, nothing has a name any more: no directory owns it.
        elsewhere |= found.is_some_and(|found| found.nlink() > 0) && is_of_another_root(&named, directory);
    }
    if elsewhere { Belongs::Elsewhere } else { Belongs::Unknown }
}

/// True if a path belongs to the same VM in another root, or lies in it.
fn is_of_another_root(path: &Path, directory: &Utf8Path) -> bool {
    let (Some(id), Some(vms)) = (directory.file_name(), directory.parent().and_then(Utf8Path::file_name))
    else {
        return false;
    };
    !path.starts_with(directory) && path.ancestors().any(|one| one.ends_with(Path::new(vms).join(id)))
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
