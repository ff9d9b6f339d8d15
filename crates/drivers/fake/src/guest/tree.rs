//! The files of a fake guest.

use std::collections::{BTreeMap, VecDeque};

use microvm_ports::GuestError;
use microvm_types::ErrorKind;
use microvm_types::files::{FileKind, FileStat};
use serde::{Deserialize, Serialize};

/// Symbolic links followed in one path, as on Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// One file, directory or link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: Modified,
    pub(crate) body: Body,
}

/// Seconds and nanoseconds since 1970.
pub(crate) type Modified = (i64, u32);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Body {
    File(Vec<u8>),
    // Names are bytes, which cannot be the keys of a JSON object.
    #[serde(with = "crate::guest::pairs")]
    Directory(BTreeMap<Vec<u8>, Node>),
    Symlink(Vec<u8>),
    /// FIFO or device: its type in an archive, major and minor number.
    Special(u8, u32, u32),
}

/// A file system from its root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tree {
    root: Node,
}

/// A path taken apart, without `.`, `..` and links in it.
pub(crate) type Parts = Vec<Vec<u8>>;

pub(crate) fn refused(kind: ErrorKind, message: impl Into<String>) -> GuestError {
    GuestError::Refused { kind, message: message.into() }
}

fn missing(parts: &[Vec<u8>]) -> GuestError {
    refused(ErrorKind::NotFound, format!("{}: no such file or directory", show(&join(parts))))
}

pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

pub(crate) fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    if parts.is_empty() {
        return b"/".to_vec();
    }
    parts.iter().flat_map(|part| std::iter::once(b'/').chain(part.iter().copied())).collect()
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec)
}

pub(crate) fn node(body: Body, mode: u32) -> Node {
    Node { mode, owner: (0, 0), modified: (0, 0), body }
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self { root: node(Body::Directory(BTreeMap::new()), 0o755) };
        for directory in ["root", "tmp", "etc", "workspace"] {
            tree.root.children_mut().insert(directory.into(), node(Body::Directory(BTreeMap::new()), 0o755));
        }
        tree
    }
}

impl Node {
    fn children(&self) -> Option<&BTreeMap<Vec<u8>, Self>> {
        match &self.body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The children; a file becomes an empty directory, so only for nodes known to be one.
    fn children_mut(&mut self) -> &mut BTreeMap<Vec<u8>, Self> {
        if self.children().is_none() {
            self.body = Body::Directory(BTreeMap::new());
        }
        match &mut self.body {
            Body::Directory(children) => children,
            _ => unreachable!("it was made a directory above"),
        }
    }

    fn stat(&self, path: &[u8]) -> FileStat {
        let (kind, size, target) = match &self.body {
            Body::File(data) => (FileKind::File, data.len() as u64, None),
            Body::Directory(_) => (FileKind::Directory, 4096, None),
            Body::Symlink(target) => (FileKind::Symlink, target.len() as u64, Some(show(target))),
            Body::Special(..) => (FileKind::Other, 0, None),
        };
        let odd_target = match &self.body {
            Body::Symlink(target) => std::str::from_utf8(target).is_err().then(|| target.clone()),
            _ => None,
        };
        FileStat {
            path: show(path),
            path_bytes: std::str::from_utf8(path).is_err().then(|| path.to_vec()),
            kind,
            size,
            mode: self.mode,
            uid: self.owner.0,
            gid: self.owner.1,
            modified_ms: self.modified.0.saturating_mul(1000) + i64::from(self.modified.1 / 1_000_000),
            modified_nanoseconds: Some(self.modified.1),
            allocated: None,
            target,
            target_bytes: odd_target,
        }
    }
}

impl Tree {
    /// Takes a path apart and follows links in it; the last part's only if `follow`.
    pub(crate) fn resolve(&self, path: &[u8], follow: bool) -> Result<Parts, GuestError> {
        if path.first() != Some(&b'/') || path.contains(&0) {
            return Err(refused(ErrorKind::Invalid, format!("{}: the path must be absolute", show(path))));
        }
        let mut pending: VecDeque<Vec<u8>> = split(path).collect();
        let (mut done, mut links) = (Parts::new(), 0);
        while let Some(part) = pending.pop_front() {
            if part == b"." {
                continue;
            }
            if part == b".." {
                done.pop();
                continue;
            }
            done.push(part);
            let link = match self.get(&done) {
                Ok(Node { body: Body::Symlink(target), .. }) if follow || !pending.is_empty() => target,
                _ => continue,
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(refused(ErrorKind::Invalid, format!("{}: too many symbolic links", show(path))));
            }
            done.pop();
            if link.first() == Some(&b'/') {
                done.clear();
            }
            for part in split(link).rev() {
                pending.push_front(part);
            }
        }
        Ok(done)
    }

    pub(crate) fn get(&self, parts: &[Vec<u8>]) -> Result<&Node, GuestError> {
        parts.iter().try_fold(&self.root, |node, part| {
            node.children().and_then(|children| children.get(part)).ok_or_else(|| missing(parts))
        })
    }

    fn directory_mut(&mut self, parts: &[Vec<u8>]) -> Result<&mut BTreeMap<Vec<u8>, Node>, GuestError> {
        let not_one = || refused(ErrorKind::Invalid, format!("{}: not a directory", show(&join(parts))));
        let mut node = &mut self.root;
        for part in parts {
            let Body::Directory(children) = &mut node.body else { return Err(not_one()) };
            node = children.get_mut(part).ok_or_else(|| missing(parts))?;
        }
        match &mut node.body {
            Body::Directory(children) => Ok(children),
            _ => Err(not_one()),
        }
    }

    /// Puts a node at a path, over what is there.
    pub(crate) fn put(&mut self, parts: &[Vec<u8>], node: Node) -> Result<(), GuestError> {
        let Some((name, parent)) = parts.split_last() else {
            return Err(refused(ErrorKind::Invalid, "/: it cannot be replaced"));
        };
        self.directory_mut(parent)?.insert(name.clone(), node);
        Ok(())
    }

    pub(crate) fn stat(&self, path: &[u8]) -> Result<FileStat, GuestError> {
        let parts = self.resolve(path, false)?;
        Ok(self.get(&parts)?.stat(&join(&parts)))
    }

    pub(crate) fn read(&self, path: &[u8]) -> Result<(FileStat, &[u8]), GuestError> {
        let parts = self.resolve(path, true)?;
        let node = self.get(&parts)?;
        match &node.body {
            Body::File(data) => Ok((node.stat(&join(&parts)), data)),
            _ => Err(refused(ErrorKind::Invalid, format!("{}: it is not a file", show(path)))),
        }
    }

    /// Makes the missing directories of a path, for an owner (else root).
    pub(crate) fn make_all(
        &mut self,
        parts: &[Vec<u8>],
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<(), GuestError> {
        let new = || Node { owner: owner.unwrap_or((0, 0)), ..node(Body::Directory(BTreeMap::new()), mode) };
        for depth in 1..=parts.len() {
            match self.get(&parts[..depth]) {
                Ok(found) if found.children().is_some() => {}
                Ok(_) => {
                    let path = show(&join(&parts[..depth]));
                    return Err(refused(ErrorKind::Invalid, format!("{path}: not a directory")));
                }
                Err(_) => self.put(&parts[..depth], new())?,
            }
        }
        Ok(())
    }

    pub(crate) fn make_directory(
        &mut self,
        path: &[u8],
        mode: u32,
        parents: bool,
        owner: Option<(u32, u32)>,
    ) -> Result<(), GuestError> {
        let parts = self.resolve(path, true)?;
        if parents {
            return self.make_all(&parts, mode, owner);
        }
        if self.get(&parts).is_ok() {
            return Err(refused(ErrorKind::Conflict, format!("{}: it exists", show(path))));
        }
        self.get(&parts[..parts.len().saturating_sub(1)])?;
        self.make_all(&parts, mode, owner)
    }

    pub(crate) fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), GuestError> {
        let (from, to) = (self.resolve(from, false)?, self.resolve(to, false)?);
        if to.starts_with(&from) && to != from {
            return Err(refused(ErrorKind::Invalid, "a directory cannot be moved into itself"));
        }
        let moved = self.get(&from)?.clone();
        self.put(&to, moved)?;
        if to != from {
            self.take(&from)?;
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &[u8], recursive: bool) -> Result<(), GuestError> {
        let parts = self.resolve(path, false)?;
        let filled = self.get(&parts)?.children().is_some_and(|children| !children.is_empty());
        if filled && !recursive {
            return Err(refused(ErrorKind::Conflict, format!("{}: the directory is not empty", show(path))));
        }
        self.take(&parts)
    }

    fn take(&mut self, parts: &[Vec<u8>]) -> Result<(), GuestError> {
        let Some((name, parent)) = parts.split_last() else {
            return Err(refused(ErrorKind::Invalid, "/: it cannot be removed"));
        };
        self.directory_mut(parent)?.remove(name).map(drop).ok_or_else(|| missing(parts))
    }

    /// Everything below a path down to `depth` levels, parents before children, with its parts.
    pub(crate) fn walk(&self, parts: &[Vec<u8>], depth: u32) -> Result<Vec<(Parts, &Node)>, GuestError> {
        let mut found = Vec::new();
        let mut waiting = vec![(parts.to_vec(), self.get(parts)?, depth)];
        while let Some((parts, node, depth)) = waiting.pop() {
            let Some(children) = node.children().filter(|_| depth > 0) else { continue };
            for (name, child) in children {
                let mut below = parts.clone();
                below.push(name.clone());
                found.push((below.clone(), child));
                waiting.push((below, child, depth - 1));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    pub(crate) fn list(&self, path: &[u8], depth: u32) -> Result<Vec<FileStat>, GuestError> {
        let parts = self.resolve(path, true)?;
        if self.get(&parts)?.children().is_none() {
            return Err(refused(ErrorKind::Invalid, format!("{}: not a directory", show(path))));
        }
        Ok(self.walk(&parts, depth)?.into_iter().map(|(parts, node)| node.stat(&join(&parts))).collect())
    }
}
