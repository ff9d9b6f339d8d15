//! Extended attributes and access control lists of an entry, as GNU tar, star and libarchive write them into pax records.

use std::os::fd::{AsRawFd as _, OwnedFd};

use microvm_archive::{Acl, AclKind, Entry, Principal, id_of};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::core::failure::show;

/// Names and values, and what cannot be taken over.
#[derive(Default)]
pub(super) struct Xattrs {
    given: Vec<(Vec<u8>, Vec<u8>)>,
    refused: Vec<String>,
}

/// Users and groups of the guest, read when a list first names one.
#[derive(Default)]
pub(super) struct Names(Option<(Vec<u8>, Vec<u8>)>);

impl Names {
    fn id(&mut self, principal: Principal, name: &[u8]) -> Option<u32> {
        let read = |path| std::fs::read(path).unwrap_or_default();
        let (users, groups) = self.0.get_or_insert_with(|| (read("/etc/passwd"), read("/etc/group")));
        match principal {
            Principal::User => id_of(users, name),
            Principal::Group => id_of(groups, name),
        }
    }
}

impl Xattrs {
    pub(super) fn of(entry: &Entry, names: &mut Names) -> Self {
        let mut found = Self { given: entry.xattrs.clone(), refused: Vec::new() };
        for (kind, text) in &entry.acls {
            let what = match kind {
                AclKind::Access => "access control list",
                AclKind::Default => "default access control list",
            };
            let names = std::cell::RefCell::new(&mut *names);
            match Acl::parse(text, |principal, name| names.borrow_mut().id(principal, name)) {
                Ok(list) => {
                    // Text counts: some archivers write the attribute, too.
                    found.given.retain(|(name, _)| name != kind.xattr());
                    found.given.push((kind.xattr().to_vec(), list.to_xattr()));
                }
                Err(error) => found.refused.push(format!("its {what} cannot be set: {error}")),
            }
        }
        found
    }

    /// Takes out the default list of a directory, which is set when the directory is complete.
    pub(super) fn take_default_list(&mut self) -> Option<Vec<u8>> {
        let at = self.given.iter().position(|(name, _)| name == AclKind::Default.xattr())?;
        Some(self.given.swap_remove(at).1)
    }

    /// Gives them to what is open, whatever its kind; returns what it did not get. After owner, mode and content: each of
    /// them takes capabilities away.
    pub(super) fn give(&self, file: &OwnedFd) -> Vec<String> {
        let unset = self.given.iter().filter_map(|(name, value)| set(file, name, value).err());
        self.refused.iter().cloned().chain(unset).collect()
    }
}

/// Takes away the access control lists that something new has got from the directory it was made in: an archive says of each
/// entry what it is to have, and a list of the directory would open it to others.
///
/// # Errors
/// The reason for which one is still there, for the list of what is left out.
pub(super) fn drop_inherited(file: &OwnedFd) -> Result<(), String> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    for kind in [AclKind::Access, AclKind::Default] {
        let mut nothing: [u8; 0] = [];
        // Asked first: to take away what is not there costs a transaction of the file system.
        let outcome = match getxattr(&*path, kind.xattr(), &mut nothing[..]) {
            // The file system, or this kind of file, has no lists.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(error) => Err(error),
            Ok(_) => removexattr(&*path, kind.xattr()),
        };
        outcome.map_err(|error| {
            format!("the access control list of its directory cannot be taken from it: {error}")
        })?;
    }
    Ok(())
}

/// Sets an attribute of what is open.
///
/// # Errors
/// The reason for which it is not set, for the list of what is left out.
pub(super) fn set(file: &OwnedFd, name: &[u8], value: &[u8]) -> Result<(), String> {
    // The name below /proc is the file itself, also of one that cannot be opened, and of a link.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    setxattr(&*path, name, value, XattrFlags::empty())
        .map_err(|error| format!("its extended attribute {} cannot be set: {error}", show(name)))
}
