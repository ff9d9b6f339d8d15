//! Extended attributes of an entry, as GNU tar, star and libarchive write them into pax records.

use std::io::Read;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{XattrFlags, setxattr};
use tar::Entry;

use super::broken;
use crate::core::failure::{AgentResult, show};

/// Names and values, and what cannot be taken over.
#[derive(Default)]
pub(super) struct Xattrs {
    given: Vec<(Vec<u8>, Vec<u8>)>,
    refused: Vec<String>,
}

impl Xattrs {
    pub(super) fn of(entry: &mut Entry<'_, impl Read>) -> AgentResult<Self> {
        let mut found = Self::default();
        for record in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
            let record = record.map_err(broken)?;
            let key = record.key_bytes();
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                found.given.push((name.to_vec(), record.value_bytes().to_vec()));
            } else if key.starts_with(b"SCHILY.acl.") && !record.value_bytes().is_empty() {
                found
                    .refused
                    .push("its access control list is text: pack it as an extended attribute".to_owned());
            }
        }
        Ok(found)
    }

    /// Gives them to what is open, whatever its kind; returns what it did not get. After owner, mode and content: each of
    /// them takes capabilities away.
    pub(super) fn give(&self, file: &OwnedFd) -> Vec<String> {
        // The name below /proc is the file itself, also of one that cannot be opened, and of a link.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut refused = self.refused.clone();
        for (name, value) in &self.given {
            if let Err(error) = setxattr(&*path, &name[..], value, XattrFlags::empty()) {
                refused.push(format!("its extended attribute {} cannot be set: {error}", show(name)));
            }
        }
        refused
    }
}
