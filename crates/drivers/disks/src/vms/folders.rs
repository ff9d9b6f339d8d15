//! Folders of the host that a guest is to see.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;

/// Directories of the kernel: their files are switches and no data.
const KERNEL_PATHS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The real path of a folder that may be shared. `root` is the store's own directory: a guest that could write there, or
/// read other guests' memory there, would be all of them.
pub(crate) fn inspect(path: &Utf8Path, root: &Utf8Path) -> Result<Utf8PathBuf, StorageError> {
    let refuse = |detail: &str| Err(bad_input(format!("the folder `{path}`"), detail));
    if !path.is_absolute() {
        return refuse("the path of a folder on the host must be absolute");
    }
    let real = match path.canonicalize_utf8() {
        Ok(real) => real,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound => refuse("there is no such folder on the host of the server"),
                io::ErrorKind::NotADirectory => refuse("it is not a folder: only folders can be shared"),
                io::ErrorKind::PermissionDenied => refuse("the server may not look at it"),
                io::ErrorKind::InvalidData => refuse("it leads to a path that is not UTF-8"),
                _ => Err(io_error("looking at", path)(error)),
            };
        }
    };
    let metadata = real.metadata().map_err(io_error("examining", path))?;
    if !metadata.is_dir() {
        return refuse("it is not a folder: only folders can be shared");
    }
    if root.starts_with(&real) {
        return refuse("it holds the server's own files, of all VMs: share a folder that does not");
    }
    if real.starts_with(root) {
        return refuse("it belongs to the server's own files: share a folder outside of them");
    }
    if KERNEL_PATHS.iter().any(|path| real.starts_with(path)) {
        return refuse("it belongs to the host's kernel: share a folder outside of /proc, /sys and /dev");
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_show_nothing_of_ours() {
        let home = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(home.path()).unwrap().canonicalize_utf8().unwrap();
        let root = home.join("store/deep");
        let folder = home.join("a,b=c d");
        for directory in [&root.join("vms"), &folder, &home.join("store-2")] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let file = home.join("file");
        std::fs::write(&file, "x").unwrap();
        let link = home.join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        std::os::unix::fs::symlink(&root, home.join("sly")).unwrap();
        assert_eq!(inspect(&folder, &root).unwrap(), folder);
        assert_eq!(inspect(&link, &root).unwrap(), folder);
        assert_eq!(inspect(&home.join("store-2"), &root).unwrap(), home.join("store-2"));
        let refused = |path: &Utf8Path| inspect(path, &root).unwrap_err().to_string();
        assert!(refused(&home.join("missing")).contains("no such folder"));
        assert!(refused(&file).contains("not a folder"));
        assert!(refused(&file.join("x")).contains("not a folder"));
        assert!(refused("relative".into()).contains("absolute"));
        for path in [&root, &root.join("vms"), &home.join("sly")] {
            assert!(refused(path).contains("server's own files"), "{path}");
        }
        for path in [Utf8Path::new("/"), &home, &home.join("store"), &home.join("store/deep/..")] {
            assert!(refused(path).contains("server's own files"), "{path}");
        }
        for path in ["/proc/self", "/sys", "/dev"] {
            assert!(refused(path.into()).contains("kernel"), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStrExt as _;
        let home = tempfile::tempdir().unwrap();
        let odd = home.path().join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
        std::fs::create_dir(&odd).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&odd, &link).unwrap();
        let refused = inspect(Utf8Path::from_path(&link).unwrap(), Utf8Path::new("/nowhere")).unwrap_err();
        assert!(refused.to_string().contains("UTF-8"), "{refused}");
    }
}
