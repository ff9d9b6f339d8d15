//! Ends of a copy, as they are typed.

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
        /// The VM.
        vm: VmRef,
        /// Path in it, as it was typed: the guest's style decides where it begins.
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
            Some(Self::Guest { vm, path: bytes[colon + 1..].to_vec() })
        });
        guest.unwrap_or_else(|| Self::Local(PathBuf::from(OsString::from_vec(bytes.to_vec()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let place = |text: &[u8]| Place::parse(OsStr::from_bytes(text));
        let guest = |vm: &str, path: &[u8]| Place::Guest { vm: vm.parse().unwrap(), path: path.to_vec() };
        assert_eq!(place(b"dev:/root/\xff x"), guest("dev", b"/root/\xff x"));
        assert_eq!(place(b"dev:out"), guest("dev", b"out"));
        assert_eq!(place(b"-"), Place::Stream);
        for local in [&b"./a:b"[..], b"/x:/y", b"plain", b"../dev:/x", b":x", b"a b:/x"] {
            assert!(matches!(place(local), Place::Local(_)), "{local:?}");
        }
    }
}
