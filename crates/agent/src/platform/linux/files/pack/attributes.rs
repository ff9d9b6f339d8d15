//! Extended attributes and access control lists of what is packed.

use std::path::Path;

use microvm_archive::{Acl, AclKind, pax};
use microvm_protocol::messages::LeftOut;
use rustix::io::Errno;

use super::header::Records;
use crate::core::failure::show;

/// Kernels give no more, of names or of one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;

/// The pax records of a file for any program that unpacks them: access control lists as text, with numbers in place of names.
/// Those that cannot be in a record are counted in `left_out`.
pub(super) fn records(path: &Path, left_out: &mut LeftOut) -> rustix::io::Result<Records> {
    let mut records = Records::new();
    for (name, value) in xattrs(path)? {
        if let Some((kind, list)) = AclKind::of_xattr(&name).zip(Acl::from_xattr(&value)) {
            records.push((kind.record().to_vec(), list.to_text().into_bytes()));
        } else if let Some(key) = key(&name) {
            records.push((key, value));
        } else {
            let reason = format!("its extended attribute {} has a `=` in its name", show(&name));
            left_out.add(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), reason);
        }
    }
    Ok(records)
}

/// Key of the pax record of an extended attribute; `None` if its name would not end where it ends.
pub(in crate::platform::linux::files) fn key(name: &[u8]) -> Option<Vec<u8>> {
    (!name.contains(&b'=')).then(|| [pax::XATTR, name].concat())
}

/// Names and values of a file's extended attributes, in order; none where the file system has none. A link is not followed.
pub(in crate::platform::linux) fn xattrs(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = Vec::new();
    match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
        Ok(_) => names.resize(XATTR_MAX, 0),
        Err(error) => return Err(error),
    }
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = Vec::new();
    let mut value = vec![0u8; XATTR_MAX];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => found.push((name.to_vec(), value[..length].to_vec())),
            // Removed since its name was read.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    // Equal files give equal archives, whatever order the file system has.
    found.sort();
    Ok(found)
}
