//! Where something is copied from or to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use microvm_types::VmRef;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path of this host.
    Local(PathBuf),
    /// A path of a guest, as bytes.
    Guest {
        /// Which VM.
        vm: VmRef,
        /// Absolute path in it.
        path: Vec<u8>,
    },
    /// Standard input or output, as a tar stream.
    Stream,
}

impl Place {
    /// `VM:/path` is in a guest, `-` is a stream, everything else is local. A local name with a colon is written with
    /// a slash before the colon (`./a:b`), which no VM's name can have.
    pub(crate) fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Self::Stream;
        }
        let guest = bytes.iter().position(|&byte| byte == b':').and_then(|colon| {
            let vm = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
            Some(Self::Guest { vm, path: absolute(&bytes[colon + 1..]) })
        });
        guest.unwrap_or_else(|| Self::Local(PathBuf::from(OsString::from_vec(bytes.to_vec()))))
    }
}

/// A relative path in a guest is taken from its root, as other tools do it.
fn absolute(path: &[u8]) -> Vec<u8> {
    if path.first() == Some(&b'/') { path.to_vec() } else { [b"/", path].concat() }
}

/// The last name of a path; empty for `/` and where it is `.` or `..`.
pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let path = &path[..end];
    let name = &path[path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1)..];
    if name == b"." || name == b".." { b"" } else { name }
}

/// All of a path but its last name; `/` where nothing is left.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    let end = |path: &[u8]| path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let path = &path[..end(path)];
    let path = &path[..path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)];
    if end(path) == 0 { b"/" } else { &path[..end(path)] }
}

/// `folder/name`.
pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if folder.ends_with(b"/") { b"" } else { b"/" };
    [folder, separator, name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let place = |text: &[u8]| Place::parse(OsStr::from_bytes(text));
        let guest = |vm: &str, path: &[u8]| Place::Guest { vm: vm.parse().unwrap(), path: path.to_vec() };
        assert_eq!(place(b"dev:/root/\xff x"), guest("dev", b"/root/\xff x"));
        assert_eq!(place(b"dev:out"), guest("dev", b"/out"));
        assert_eq!(place(b"-"), Place::Stream);
        for local in [&b"./a:b"[..], b"/x:/y", b"plain", b"../dev:/x", b":x", b"a b:/x"] {
            assert!(matches!(place(local), Place::Local(_)), "{local:?}");
        }
    }

    #[test]
    fn names_and_joins() {
        assert_eq!(base_name(b"/root/out//"), b"out");
        assert_eq!(base_name(b"/"), b"");
        assert_eq!(base_name(b"/a/.."), b"");
        assert_eq!(parent(b"/root/out//"), b"/root");
        assert_eq!(parent(b"/root//out"), b"/root");
        assert_eq!((parent(b"/out"), parent(b"/"), parent(b"//x/")), (&b"/"[..], &b"/"[..], &b"/"[..]));
        assert_eq!(join(b"/", b"x"), b"/x");
        assert_eq!(join(b"/a", b"x"), b"/a/x");
    }
}
