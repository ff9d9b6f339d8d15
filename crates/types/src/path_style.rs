//! Paths of guests, whose syntax is that of the guest's operating system and not of this one.

use serde::{Deserialize, Serialize};

/// Syntax of the paths of a guest. Paths are bytes: a guest may have names that are no UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PathStyle {
    /// `/folder/name`; a backslash is a character like any other.
    #[default]
    Posix,
    /// `C:\folder\name`; both slashes separate.
    Windows,
}

impl PathStyle {
    /// Returns true for [`PathStyle::Posix`], the style of every guest that does not name one.
    #[must_use]
    pub fn is_posix(&self) -> bool {
        *self == Self::Posix
    }

    /// Returns true if the path begins at a root: `/x`; `C:\x`, `C:/x`, `/C:/x` or `\\host\share`.
    #[must_use]
    pub fn is_absolute(self, path: &[u8]) -> bool {
        match self {
            Self::Posix => path.first() == Some(&b'/'),
            Self::Windows => path.starts_with(br"\\") || self.root(without_leading_slash(path)) > 2,
        }
    }

    /// The path as the guest takes it: a relative one begins at the root, for Windows that of drive `C:`, and `/C:/x`
    /// becomes `C:\x`.
    #[must_use]
    pub fn absolute(self, path: &[u8]) -> Vec<u8> {
        match self {
            Self::Posix if self.is_absolute(path) => path.to_vec(),
            Self::Posix => [b"/", path].concat(),
            Self::Windows => {
                let path = if self.is_absolute(path) && !path.starts_with(br"\\") {
                    without_leading_slash(path).to_vec()
                } else if path.starts_with(br"\\") {
                    path.to_vec()
                } else {
                    let relative = path.iter().position(|byte| !self.separates(*byte)).unwrap_or(path.len());
                    [br"C:\", &path[relative..]].concat()
                };
                path.into_iter().map(|byte| if byte == b'/' { b'\\' } else { byte }).collect()
            }
        }
    }

    /// The last name of a path; empty for a root and where it is `.` or `..`.
    #[must_use]
    pub fn base_name(self, path: &[u8]) -> &[u8] {
        let path = self.trimmed(path);
        let name = &path[self.last_separator(path).map_or(self.root(path), |at| at + 1)..];
        if name == b"." || name == b".." { b"" } else { name }
    }

    /// The path without its last name; the root where nothing else is left.
    #[must_use]
    pub fn parent(self, path: &[u8]) -> Vec<u8> {
        let trimmed = self.trimmed(path);
        let root = self.root(path);
        let parent = self.trimmed(&trimmed[..self.last_separator(trimmed).unwrap_or(root).max(root)]);
        if parent.is_empty() { b"/".to_vec() } else { parent.to_vec() }
    }

    /// The path of `name` in `folder`; an empty name ends the folder in a separator.
    #[must_use]
    pub fn join(self, folder: &[u8], name: &[u8]) -> Vec<u8> {
        let separator: &[u8] = match self {
            _ if folder.last().is_some_and(|last| self.separates(*last)) => b"",
            Self::Posix => b"/",
            Self::Windows => b"\\",
        };
        [folder, separator, name].concat()
    }

    /// Returns true if the path is written as that of a directory.
    #[must_use]
    pub fn ends_in_separator(self, path: &[u8]) -> bool {
        path.last().is_some_and(|last| self.separates(*last))
    }

    fn separates(self, byte: u8) -> bool {
        byte == b'/' || (self == Self::Windows && byte == b'\\')
    }

    /// Length of the root at the beginning of a path: `/`, `C:\`, or nothing.
    fn root(self, path: &[u8]) -> usize {
        match (self, path) {
            (Self::Posix, [b'/', ..]) => 1,
            (Self::Windows, [drive, b':', separator, ..])
                if drive.is_ascii_alphabetic() && self.separates(*separator) =>
            {
                3
            }
            (Self::Windows, [drive, b':']) if drive.is_ascii_alphabetic() => 2,
            _ => 0,
        }
    }

    /// The path without separators at its end, but with its root.
    fn trimmed(self, path: &[u8]) -> &[u8] {
        let end = path.iter().rposition(|byte| !self.separates(*byte)).map_or(0, |last| last + 1);
        &path[..end.max(self.root(path)).min(path.len())]
    }

    fn last_separator(self, path: &[u8]) -> Option<usize> {
        path.iter().rposition(|byte| self.separates(*byte))
    }
}

/// `/C:/x` is how URLs and archives write `C:/x`.
fn without_leading_slash(path: &[u8]) -> &[u8] {
    match path {
        [b'/', drive, b':', ..] if drive.is_ascii_alphabetic() => &path[1..],
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::PathStyle::{Posix, Windows};

    #[test]
    fn paths_of_posix() {
        assert_eq!(Posix.base_name(b"/root/out//"), b"out");
        assert_eq!((Posix.base_name(b"/"), Posix.base_name(b"/a/..")), (&b""[..], &b""[..]));
        assert_eq!(Posix.base_name(br"/a/C:\x"), br"C:\x", "a backslash is a character of a name");
        assert_eq!(Posix.parent(b"/root/out//"), b"/root");
        assert_eq!(Posix.parent(b"/root//out"), b"/root");
        for root in [&b"/out"[..], b"/", b"//x/"] {
            assert_eq!(Posix.parent(root), b"/");
        }
        assert_eq!(
            (Posix.join(b"/", b"x"), Posix.join(b"/a", b"x"), Posix.join(b"/a", b"")),
            (b"/x".to_vec(), b"/a/x".to_vec(), b"/a/".to_vec())
        );
        assert_eq!((Posix.absolute(b"out"), Posix.absolute(b"/out")), (b"/out".to_vec(), b"/out".to_vec()));
        assert!(Posix.is_absolute(b"/x") && !Posix.is_absolute(b"C:/x"));
    }

    #[test]
    fn paths_of_windows() {
        for written in [&br"C:\x\y"[..], b"C:/x/y", b"/C:/x/y", br"x\y", b"/x/y"] {
            assert_eq!(Windows.absolute(written), br"C:\x\y", "{}", String::from_utf8_lossy(written));
        }
        assert_eq!(Windows.absolute(br"\\host\share\x"), br"\\host\share\x");
        for absolute in [&br"C:\x"[..], b"C:/x", b"/C:/x", br"\\host\share"] {
            assert!(Windows.is_absolute(absolute));
        }
        for relative in [&b"x"[..], b"/x", b"C:x", b"4:/x"] {
            assert!(!Windows.is_absolute(relative), "{}", String::from_utf8_lossy(relative));
        }
        assert_eq!((Windows.base_name(br"C:\x\y\"), Windows.base_name(br"C:\")), (&b"y"[..], &b""[..]));
        assert_eq!(
            (Windows.parent(br"C:\x\y\"), Windows.parent(br"C:\x")),
            (br"C:\x".to_vec(), br"C:\".to_vec())
        );
        assert_eq!(
            (Windows.join(br"C:\", b"x"), Windows.join(br"C:\x", b"y")),
            (br"C:\x".to_vec(), br"C:\x\y".to_vec())
        );
    }
}
