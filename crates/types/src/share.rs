//! Shared folders: folders of the host that a guest sees.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shown::shown;

/// Longest path on either side in bytes (PATH_MAX of linux/limits.h, its final NUL included).
const PATH_MAX: usize = 4_095;
/// Where the guest's kernel shows itself: a folder there would hide it.
const KERNEL_PATHS: [&str; 3] = ["/proc", "/dev", "/sys"];

/// A folder of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Share {
    /// Absolute path of the folder on the host of the server.
    pub source: String,
    /// Absolute path in the guest where it appears; made if it is not there.
    pub target: String,
    /// Whether the guest may not write to it; it may not unless this is `false`.
    #[serde(default = "yes")]
    pub read_only: bool,
}

const fn yes() -> bool {
    true
}

/// How programs of a guest notice what somebody else changes in a shared folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub enum ShareChanges {
    /// By looking again: the guest's kernel reports no events (inotify, fanotify) of changes that the host makes. What it
    /// reads is what the host has at that moment.
    Polling,
}

/// Why a folder cannot be shared as described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not `HOST_DIR:GUEST_DIR[:ro|:rw]`.
    #[error("`{0}` is not HOST_DIR:GUEST_DIR[:ro|:rw], for example ./data:/data:ro")]
    Format(String),
    /// The path on the host cannot be one.
    #[error("the folder of the host `{path}` {reason}")]
    Source {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path in the guest cannot be one.
    #[error("the path in the guest `{path}` {reason}")]
    Target {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two folders or volumes at one place, or one inside the other.
    #[error("`{inner}` and `{outer}` cannot both be mounted in one guest: choose separate paths")]
    Overlap {
        /// The path in the guest of one.
        inner: String,
        /// The path that it equals or lies below.
        outer: String,
    },
}

impl Share {
    /// Checks what can be said of the two paths without looking at either system.
    ///
    /// # Errors
    /// [`ShareError::Source`] and [`ShareError::Target`].
    pub fn check(&self) -> Result<(), ShareError> {
        let source = |reason| ShareError::Source { path: shown(&self.source), reason };
        if !self.source.starts_with('/') {
            return Err(source("must be absolute"));
        }
        if self.source.len() > PATH_MAX || self.source.contains('\0') {
            return Err(source("must have at most 4095 bytes and no NUL"));
        }
        check_target(&self.target)
    }

    /// Checks the folders of one guest, each by itself and against each other.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn check_all(shares: &[Self]) -> Result<(), ShareError> {
        shares.iter().try_for_each(Self::check)?;
        check_targets(&shares.iter().map(|share| share.target.as_str()).collect::<Vec<_>>())
    }
}

/// Checks what can be said of a path in a guest where something is to be mounted.
fn check_target(path: &str) -> Result<(), ShareError> {
    let target = |reason| ShareError::Target { path: shown(path), reason };
    if !path.starts_with('/') {
        return Err(target("must be absolute"));
    }
    if path.len() > PATH_MAX || path.chars().any(char::is_control) {
        return Err(target("must have at most 4095 bytes and no control characters"));
    }
    if path == "/" {
        return Err(target("is the guest's whole root: choose a folder below it"));
    }
    if path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Err(target("must be written without `.`, `..`, doubled and final slashes"));
    }
    if KERNEL_PATHS.iter().any(|kernel| is_within(path, kernel)) {
        return Err(target("belongs to the guest's kernel: choose one outside of /proc, /dev and /sys"));
    }
    Ok(())
}

/// Checks the paths at which folders and volumes are mounted in one guest, each by itself and against each other.
///
/// # Errors
/// [`ShareError::Target`] and [`ShareError::Overlap`].
pub fn check_targets(targets: &[&str]) -> Result<(), ShareError> {
    for (index, target) in targets.iter().enumerate() {
        check_target(target)?;
        for other in &targets[..index] {
            for (inner, outer) in [(target, other), (other, target)] {
                if is_within(inner, outer) {
                    return Err(ShareError::Overlap { inner: shown(inner), outer: shown(outer) });
                }
            }
        }
    }
    Ok(())
}

/// Whether `path` is `folder` or lies below it; both are absolute and normal.
fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for Share {
    type Err = ShareError;

    /// `HOST_DIR:GUEST_DIR[:ro|:rw]`. The last colon separates the two, so that a path of the host may have some. The
    /// path of the host may be relative here: whoever knows relative to what makes it absolute.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (paths, read_only) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, true),
            Some((paths, "rw")) => (paths, false),
            _ => (text, true),
        };
        let share =
            paths.rsplit_once(':').filter(|(source, target)| !source.is_empty() && !target.is_empty());
        let (source, target) = share.ok_or_else(|| ShareError::Format(shown(text)))?;
        let share = Self { source: source.to_owned(), target: target.to_owned(), read_only };
        // Found before anything else is asked; the source is not yet what it is going to be.
        Self { source: "/".to_owned(), ..share.clone() }.check()?;
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(source: &str, target: &str) -> Share {
        Share { source: source.into(), target: target.into(), read_only: true }
    }

    #[test]
    fn the_short_form_is_understood() {
        assert_eq!("./data:/data".parse(), Ok(share("./data", "/data")));
        assert_eq!("/a:b:/data:ro".parse(), Ok(share("/a:b", "/data")));
        assert_eq!("/a,b=c:/d:rw".parse(), Ok(Share { read_only: false, ..share("/a,b=c", "/d") }));
        for wrong in ["", "/a", ":/b", "/a:", "a:b", "/a:b:rw", "/a:/b:rx", "ro", "/a:ro", "/a:/"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_is_read_only() {
        let read: Share = serde_json::from_str(r#"{"source": "/a", "target": "/b"}"#).unwrap();
        assert!(read.read_only);
        assert!(serde_json::from_str::<Share>(r#"{"source": "/a", "target": "/b", "mode": "rw"}"#).is_err());
    }

    #[test]
    fn impossible_places_are_named() {
        for target in
            ["data", "/", "/proc", "/proc/1", "/dev/x", "/sys", "/a/../b", "/a//b", "/a/", "/a\nb", "/."]
        {
            assert!(matches!(share("/a", target).check(), Err(ShareError::Target { .. })), "{target}");
        }
        for source in ["", "a", "./a", "/a\0b", &format!("/{}", "a".repeat(5_000))] {
            assert!(matches!(share(source, "/a").check(), Err(ShareError::Source { .. })), "{source}");
        }
        // Names that only begin alike are others.
        share("/a", "/process").check().unwrap();
        share("/a,b\nc", "/a b=c,d").check().unwrap();
    }

    #[test]
    fn folders_do_not_hide_each_other() {
        let all = |targets: &[&str]| {
            Share::check_all(&targets.iter().map(|target| share("/a", target)).collect::<Vec<_>>())
        };
        all(&["/a", "/ab", "/b/a"]).unwrap();
        for targets in [["/a", "/a"], ["/a", "/a/b"], ["/a/b", "/a"]] {
            assert!(matches!(all(&targets), Err(ShareError::Overlap { .. })), "{targets:?}");
        }
    }

    proptest! {
        #[test]
        fn the_short_form_says_what_it_was_made_of(
            source in "/[a-z,=: ]{0,20}", target in "(/[a-z,=]{1,8}){1,3}", read_only: bool
        ) {
            let mode = if read_only { "ro" } else { "rw" };
            let made = Share { source, target, read_only };
            prop_assume!(made.check().is_ok());
            prop_assert_eq!(format!("{}:{}:{mode}", made.source, made.target).parse(), Ok(made));
        }
    }
}
