//! Directories that programs take for granted and an image may lack, as those made of one static program do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{BootError, failed};

/// With the mode of one that is made; one that is there keeps its own.
const DIRECTORIES: [(&str, u32); 6] = [
    ("/etc", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/tmp", 0o1777),
    ("/var", 0o755),
    ("/var/tmp", 0o1777),
];

/// Makes what is missing. What is there, a link or a file too, is left alone: the image means it.
pub(super) fn complete() -> Result<(), BootError> {
    complete_in("")
}

fn complete_in(root: &str) -> Result<(), BootError> {
    for (directory, mode) in DIRECTORIES {
        let path = format!("{root}{directory}");
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match fs::create_dir(&path) {
            // Made first: a mask may take bits away.
            Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(failed(format!("set the mode of {path}")))?,
            // Its parent is a link to nowhere or a file.
            Err(error) => crate::core::console::say(&format!("{path} is missing: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_made_and_others_keep_their_modes() {
        let root = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().permissions().mode() & 0o7777;
        fs::create_dir(root.path().join("root")).unwrap();
        fs::set_permissions(root.path().join("root"), fs::Permissions::from_mode(0o711)).unwrap();
        complete_in(root.path().to_str().unwrap()).unwrap();
        let modes = ["etc", "root", "tmp", "var/tmp"].map(mode);
        assert_eq!(modes, [0o755, 0o711, 0o1777, 0o1777]);
    }

    #[test]
    fn what_an_image_has_in_place_of_a_directory_stays() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("var")).unwrap();
        complete_in(root.path().to_str().unwrap()).unwrap();
        assert!(fs::symlink_metadata(root.path().join("var")).unwrap().is_symlink());
        assert!(root.path().join("tmp").is_dir());
    }
}
