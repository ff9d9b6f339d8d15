//! Paths as the host sends them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::core::failure::{AgentError, AgentResult, show};

/// Checks that a path is absolute, without NUL, and not longer than the kernel takes.
pub(super) fn absolute(path: &[u8]) -> AgentResult<&Path> {
    if path.first() != Some(&b'/') {
        return Err(AgentError::invalid(format!("the path {} is not absolute", show(path))));
    }
    // `PATH_MAX` of Linux, which counts the closing NUL.
    if path.contains(&0) || path.len() >= 4096 {
        return Err(AgentError::invalid(format!(
            "the path {} is too long or contains a NUL byte",
            show(path)
        )));
    }
    Ok(Path::new(OsStr::from_bytes(path)))
}

/// `map_err` for an operation on a path.
pub(super) fn failed<E: Into<std::io::Error>>(action: &str, path: &Path) -> impl FnOnce(E) -> AgentError {
    let text = format!("{action} {}", show(path.as_os_str().as_bytes()));
    move |error| AgentError::system(text, error)
}
