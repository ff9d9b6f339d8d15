//! Processes of ours that nothing tells of any more: no row, no record, no cgroup.
//!
//! Processes that this crate starts have a mark in their environment: the directory it works for, and the identity of the folder in which
//! that lies. A process is a stray of a folder only if both match that very folder, on which the server holds the lock. So
//! processes in a container with the same paths, in a copy of the folder, or of another user do not match. A VMM
//! that its guest has taken over can hide its mark or take another one; it harms nobody else by that.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::identity::{ProcessIdentity, is_gone};
use super::record::PROCESS_FILE;
use crate::cgroup;

/// The variable that holds the mark.
pub(crate) const MARK: &str = "MICROVM_CAGE";

/// The mark of what works for a directory; `None` if the directory is nowhere.
pub(crate) fn mark(directory: &Utf8Path) -> Option<String> {
    let folder = directory.parent()?.metadata().ok()?;
    Some(format!("{}:{}:{directory}", folder.dev(), folder.ino()))
}

/// Ends every process that works for a directory right below `folder` whose name `is_known` does not know, and which is not
/// there any more or has no record of a process. Returns the names of the directories.
///
/// # Errors
/// If the folder or the list of processes cannot be read; `TimedOut` if one still exists after `deadline`.
pub async fn end_strays(
    folder: &Utf8Path,
    is_known: impl Fn(&str) -> bool,
    deadline: Duration,
) -> io::Result<Vec<String>> {
    let mut ended = Vec::new();
    for (identity, directory) in marked(folder)? {
        let Some(name) = directory.file_name().filter(|name| !is_known(name)) else { continue };
        // A record that cannot be looked at may be there.
        if directory.join(PROCESS_FILE).try_exists().unwrap_or(true) {
            continue;
        }
        tracing::warn!(%directory, pid = identity.pid, "ending a process of ours that nothing tells of any more");
        identity.end(deadline).await?;
        cgroup::remove(name);
        if !ended.iter().any(|known| known == name) {
            ended.push(name.to_owned());
        }
    }
    Ok(ended)
}

/// Ends every process that is marked as working for a directory.
pub(crate) async fn end_marked(directory: &Utf8Path, deadline: Duration) -> io::Result<()> {
    let Some(folder) = directory.parent() else { return Ok(()) };
    for (identity, marked) in marked(folder)? {
        if marked == directory {
            tracing::warn!(%directory, pid = identity.pid, "ending a process that only its mark knows");
            identity.end(deadline).await?;
        }
    }
    Ok(())
}

/// Living processes that are marked as working for directories of a folder, with the directory by the folder's name of
/// today: it may have been renamed since, or be mounted elsewhere.
fn marked(folder: &Utf8Path) -> io::Result<Vec<(ProcessIdentity, Utf8PathBuf)>> {
    let found = folder.metadata()?;
    let start = format!("{MARK}={}:{}:", found.dev(), found.ino());
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // This server may itself have been started by something that carries the mark.
        if pid.cast_unsigned() == std::process::id() {
            continue;
        }
        // Looked up first: what is read after it belongs to this process or to none.
        let looked = ProcessIdentity::of(pid)
            .and_then(|identity| Ok((identity, std::fs::read(format!("/proc/{pid}/environ"))?)));
        let (identity, environment) = match looked {
            Ok(looked) => looked,
            Err(error) if is_nobody_of_ours(&error) => continue,
            Err(error) => return Err(error),
        };
        let mut variables = environment.split(|byte| *byte == 0);
        let name = variables
            .find_map(|variable| variable.strip_prefix(start.as_bytes()))
            .and_then(|path| Utf8Path::new(std::str::from_utf8(path).ok()?).file_name());
        all.extend(name.map(|name| (identity, folder.join(name))));
    }
    Ok(all)
}

/// True if a process could not be looked at because it has ended, or belongs to another user.
fn is_nobody_of_ours(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || is_gone(error)
}
