//! Ownership of a root directory: it is ours if it carries our marker, or was empty when we took it.
//!
//! A server removes leftovers and changes modes below its root. In a directory that belongs to something else (`/var`, a
//! home) that would be somebody's data, so that nothing is changed anywhere before this is known.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_driver_database::SqliteStore;
use microvm_driver_images::has_own_images;
use microvm_types::ErrorKind;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Name of the marker in a root.
const MARKER: &str = ".microvm-root";
/// Program that the marker names.
const PROGRAM: &str = "microvm-sandbox";
/// Form of the marker and of what lies beside it.
const FORMAT: u32 = 1;
/// Entries that a directory may hold and still count as empty: those of a new file system, and templates put there beforehand, of
/// which nothing is changed.
const AS_EMPTY: [&str; 2] = ["lost+found", "templates"];
/// Mode of a root that is made: whoever may not list it reaches the files of VMs by their names, if they let him.
const MODE: u32 = 0o711;
/// A marker is longer than this if it is not one.
const MARKER_MAX: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
    program: String,
}

/// Makes sure that a root is ours, and makes it ours if it is missing or empty. Otherwise nothing is changed.
///
/// # Errors
/// `root_foreign` if it is somebody else's; `root_newer` if a newer program made it; what the system says.
pub(crate) async fn claim(root: &Utf8Path) -> Result<(), CliError> {
    if !root.exists() {
        let made = DirBuilder::new().recursive(true).mode(MODE).create(root);
        made.map_err(|error| CliError::file("making", root, &error))?;
    }
    let found = root.metadata().map_err(|error| CliError::file("examining", root, &error))?;
    let euid = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return Err(foreign(root, "it is not a directory"));
    }
    if found.uid() != euid {
        return Err(foreign(root, &format!("it belongs to uid {}, and this is uid {euid}", found.uid())));
    }
    if found.mode() & 0o002 != 0 {
        return Err(foreign(root, "everybody may write to it (`chmod o-w` if it is yours)"));
    }
    let marker = root.join(MARKER);
    match read(&marker)? {
        Some(known) if known.program != PROGRAM => {
            let other = known.program.escape_debug();
            return Err(foreign(root, &format!("its {MARKER} is that of the program `{other}`")));
        }
        Some(known) if known.format > FORMAT => {
            let detail = format!(
                "the root {root} has form {}, and this program knows up to {FORMAT}: use the newer program that made it",
                known.format
            );
            return Err(CliError::new(ErrorKind::Unsupported, "root_newer", detail));
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let names = names_of(root)?;
    // Markers that were being written when a process was killed begin with the marker's name.
    let foreigner = names.iter().find(|name| !AS_EMPTY.contains(&name.as_str()) && !name.starts_with(MARKER));
    if let Some(foreigner) = foreigner
        // Roots of versions before the marker are known by what only we make.
        && !SqliteStore::is_ours(&root.join("state.sqlite")).await
        && !has_own_images(root)
    {
        return Err(foreign(root, &format!("it holds `{foreigner}` and nothing that marks it as ours")));
    }
    write(root, &marker)
}

fn foreign(root: &Utf8Path, why: &str) -> CliError {
    let detail = format!(
        "{root} is not a root directory of microvm: {why}; nothing was changed in it. Choose an empty or a new directory with --root"
    );
    CliError::new(ErrorKind::Conflict, "root_foreign", detail)
}

fn names_of(root: &Utf8Path) -> Result<Vec<String>, CliError> {
    let failed = |error: std::io::Error| CliError::file("reading", root, &error);
    let entries = root.read_dir().map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// `None` if there is none. A link, or a file of somebody else's, is none of ours.
fn read(path: &Utf8Path) -> Result<Option<Marker>, CliError> {
    // A FIFO of somebody else's in its place would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::file("opening", path, &error)),
    };
    let found = file.metadata().map_err(|error| CliError::file("examining", path, &error))?;
    let euid = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != euid || found.len() > MARKER_MAX {
        return Err(foreign(path.parent().unwrap_or(path), &format!("its {MARKER} is not a marker of ours")));
    }
    let marker = serde_json::from_reader(std::io::Read::take(file, MARKER_MAX));
    marker.map(Some).map_err(|_| {
        foreign(path.parent().unwrap_or(path), &format!("its {MARKER} cannot be read as a marker of ours"))
    })
}

/// Whole or not at all; of two that write it at once either will do.
fn write(root: &Utf8Path, marker: &Utf8Path) -> Result<(), CliError> {
    let new: Utf8PathBuf = root.join(format!("{MARKER}.{}", std::process::id()));
    let failed = |error: std::io::Error| CliError::file("marking", marker, &error);
    // Left by a process that had this number and was killed here.
    let _ = std::fs::remove_file(&new);
    let text = Marker { format: FORMAT, program: PROGRAM.to_owned() };
    let text = serde_json::to_string(&text).map_err(|error| failed(error.into()))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, marker).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn code(outcome: Result<(), CliError>) -> String {
        match outcome {
            Err(CliError::Problem(problem)) => problem.code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_empty_or_missing_directory_becomes_ours_and_stays_so() {
        let (_guard, root) = folder();
        std::fs::create_dir(root.join("lost+found")).unwrap();
        claim(&root).await.unwrap();
        std::fs::write(root.join("anything"), "x").unwrap();
        claim(&root).await.unwrap();
        let new = root.join("a/b");
        claim(&new).await.unwrap();
        assert!(new.join(MARKER).is_file());
    }

    #[tokio::test]
    async fn what_is_not_ours_is_refused_and_left_as_it_is() {
        let (_guard, root) = folder();
        std::fs::create_dir_all(root.join("tmp/1-0")).unwrap();
        std::fs::write(root.join("state.sqlite"), "a letter").unwrap();
        std::fs::create_dir_all(root.join("images/names")).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(code(claim(&root).await), "root_foreign");
        assert_eq!(names_of(&root).unwrap().len(), 3);
        assert!(root.join("tmp/1-0").exists());
        assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        // Nor a link, a FIFO's place taken by a marker, or one that everybody may write to.
        let (_guard, root) = folder();
        std::os::unix::fs::symlink("/dev/zero", root.join(MARKER)).unwrap();
        assert!(claim(&root).await.is_err());
        let (_guard, root) = folder();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(code(claim(&root).await), "root_foreign");
        let (_guard, root) = folder();
        std::fs::write(root.join(MARKER), r#"{"format": 99, "program": "microvm-sandbox"}"#).unwrap();
        assert_eq!(code(claim(&root).await), "root_newer");
        let (_guard, root) = folder();
        std::fs::write(root.join(MARKER), r#"{"format": 1, "program": "other"}"#).unwrap();
        assert_eq!(code(claim(&root).await), "root_foreign");
    }

    #[tokio::test]
    async fn a_root_of_an_older_version_is_known_by_its_database() {
        let (_guard, root) = folder();
        let store = SqliteStore::open(&root.join("state.sqlite")).await.unwrap();
        // Also while its tables are in the write-ahead log only.
        std::fs::create_dir_all(root.join("vms")).unwrap();
        claim(&root).await.unwrap();
        store.close().await;
        std::fs::remove_file(root.join(MARKER)).unwrap();
        claim(&root).await.unwrap();
        assert!(root.join(MARKER).is_file());
    }
}
