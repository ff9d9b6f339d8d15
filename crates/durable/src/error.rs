//! From failures of the system to failures of the port.

use std::io;

use camino::Utf8Path;
use microvm_ports::StorageError;

/// Turns a failed system call into the port's error; a full disk (or quota) is always [`StorageError::DiskFull`].
pub fn failed(action: &'static str, path: &Utf8Path, cause: io::Error) -> StorageError {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::DiskFull {
            path: path.to_owned(),
            action: format!("{action} it"),
            needed: "some MiB".into(),
        },
        _ => StorageError::Io { action, path: path.to_owned(), cause },
    }
}

/// Shorthand for `map_err`.
pub fn io_error(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| failed(action, path, source)
}

/// Like [`io_error`], for calls made through rustix.
pub fn errno(action: &'static str, path: &Utf8Path) -> impl FnOnce(rustix::io::Errno) -> StorageError {
    move |source| failed(action, path, source.into())
}

/// The input `what` is at fault.
pub fn bad_input(what: impl Into<String>, detail: impl Into<String>) -> StorageError {
    StorageError::BadInput { what: what.into(), detail: detail.into() }
}

/// A stored thing is not what was stored.
pub fn damaged(what: impl Into<String>, detail: impl Into<String>) -> StorageError {
    StorageError::Damaged { what: what.into(), detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_space_and_quota_are_a_full_disk() {
        for code in [28, 122] {
            let error = failed("writing", Utf8Path::new("/x"), io::Error::from_raw_os_error(code));
            assert!(matches!(error, StorageError::DiskFull { .. }), "{error:?}");
        }
        let error = failed("writing", Utf8Path::new("/x"), io::Error::from_raw_os_error(13));
        assert!(matches!(error, StorageError::Io { .. }));
    }
}
