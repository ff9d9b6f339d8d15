//! Extended attributes, kept behind the inode.

/// One attribute with its full name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    /// For example `security.capability`.
    pub(crate) name: Vec<u8>,
    /// Its value.
    pub(crate) value: Vec<u8>,
}

/// Prefixes the format knows, with their numbers. Access control lists have no name behind theirs.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Numbers of the two lists.
const LISTS: [u8; 2] = [2, 3];
const HEADER: usize = 12;
/// A value larger than one block is of no use to anything in a guest.
const VALUE_MAX: usize = 4096;
/// All attributes of one inode; the count in the inode is 16 bits of 4 bytes each, this is far below.
const TOTAL_MAX: usize = 32 << 10;

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// True if an attribute belongs into an image: `user.*`, `security.*`, `trusted.overlay.*` and access control lists. SELinux
/// labels and signatures of the building host mean nothing in a guest and are left out, as is everything else.
pub(crate) fn is_wanted(name: &[u8]) -> bool {
    split(name).is_some_and(|(index, rest)| {
        rest.is_empty() == LISTS.contains(&index)
            && (index != 4 || rest.starts_with(b"overlay."))
            && name != b"security.selinux"
            && name != b"security.ima"
            && name != b"security.evm"
    })
}

/// Says why the attributes of one inode cannot be kept, if they cannot.
pub(crate) fn too_large(xattrs: &[Xattr]) -> Option<String> {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).escape_debug().to_string();
    let long = xattrs.iter().find(|xattr| xattr.value.len() > VALUE_MAX || xattr.name.len() > 255);
    if let Some(long) = long {
        return Some(format!(
            "its extended attribute `{}` has {} bytes; at most {VALUE_MAX} are possible",
            shown(&long.name),
            long.value.len()
        ));
    }
    let total: usize = xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 4).sum();
    (total > TOTAL_MAX).then(|| {
        format!("its extended attributes have {total} bytes together; at most {TOTAL_MAX} are possible")
    })
}

/// The bytes behind an inode (the tree has none that are [`too_large`]): empty, or a header and entries in order of name. Padded to 4 bytes.
pub(super) fn encode(xattrs: &[Xattr]) -> Vec<u8> {
    let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
    if sorted.is_empty() {
        return Vec::new();
    }
    // Archives have them in any order; equal content must give equal bytes.
    sorted.sort();
    let mut bytes = vec![0; HEADER];
    for xattr in sorted {
        let Some((index, rest)) = split(&xattr.name) else { continue };
        let (Ok(name_length), Ok(value_length)) =
            (u8::try_from(rest.len()), u16::try_from(xattr.value.len()))
        else {
            continue;
        };
        bytes.extend([name_length, index]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Length of the bytes behind an inode with this `i_xattr_icount`, which is not 0.
pub(super) fn length(count: u16) -> usize {
    HEADER + 4 * (usize::from(count) - 1)
}

/// The attributes that [`encode`] wrote; `None` if it did not.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Xattr>> {
    let mut found = Vec::new();
    let mut rest = bytes.get(HEADER..).unwrap_or_default();
    while let Some((head, after)) = rest.split_at_checked(4) {
        let (name, value) = (usize::from(head[0]), usize::from(u16::from_le_bytes([head[2], head[3]])));
        let prefix = PREFIXES.iter().find(|(_, index)| *index == head[1])?.0;
        let name_bytes = after.get(..name)?;
        let value_bytes = after.get(name..name + value)?;
        found.push(Xattr { name: [prefix, name_bytes].concat(), value: value_bytes.to_vec() });
        rest = after.get((name + value).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

/// `i_xattr_icount` for so many bytes of [`encode`].
pub(super) fn count(length: usize) -> u16 {
    if length == 0 { 0 } else { u16::try_from((length - HEADER) / 4 + 1).unwrap_or(u16::MAX) }
}
