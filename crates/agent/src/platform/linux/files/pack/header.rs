//! Headers of entries, with pax records before them for what the old format has no room for.

use std::borrow::Cow;

use microvm_archive::pax;
use microvm_archive::sparse_map::{SparseMap, stand_in};
use tar::{EntryType, Header};

/// Facts of an entry in its header, besides its attributes.
pub(in crate::platform::linux::files) struct Entry<'a> {
    /// Its name in the archive, never empty.
    pub(in crate::platform::linux::files) name: &'a [u8],
    /// Target of a link.
    pub(in crate::platform::linux::files) target: Option<&'a [u8]>,
    /// Bytes of content; those of map and data for a sparse file.
    pub(in crate::platform::linux::files) size: u64,
    /// Map of the data of a sparse file.
    pub(in crate::platform::linux::files) map: Option<&'a SparseMap>,
    /// Last change of the content: seconds since 1970, rounded down, and nanoseconds.
    pub(in crate::platform::linux::files) modified: (i64, i64),
    /// Keys and values of further pax records.
    pub(in crate::platform::linux::files) records: &'a Records,
}

/// Keys and values of pax records.
pub(in crate::platform::linux::files) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Largest time that a header of the old format holds: 11 octal digits.
const TIME_MAX: i64 = 0o777_7777_7777;

/// Appends the header of an entry to `out`; a pax header comes before it where names are too long for the old format, or
/// the time is not a whole number of seconds that fits, or there are further records.
pub(in crate::platform::linux::files) fn append(out: &mut Vec<u8>, mut header: Header, entry: &Entry<'_>) {
    let Entry { name, target, size, map, modified: (seconds, nanoseconds), records: more } = *entry;
    let mut records = Vec::new();
    let mut shown = Cow::Borrowed(name);
    if let Some(map) = map {
        for (key, value) in map.records(name) {
            pax::append(&mut records, key.as_bytes(), &value);
        }
        shown = stand_in(name).into();
    } else if name.len() > 100 {
        pax::append(&mut records, b"path", name);
    }
    if let Some(target) = target.filter(|target| target.len() > 100) {
        pax::append(&mut records, b"linkpath", target);
    }
    header.set_mtime(seconds.clamp(0, TIME_MAX).unsigned_abs());
    if nanoseconds != 0 || !(0..=TIME_MAX).contains(&seconds) {
        pax::append(&mut records, b"mtime", decimal(seconds, nanoseconds).as_bytes());
    }
    for (key, value) in more {
        pax::append(&mut records, key, value);
    }
    if !records.is_empty() {
        let mut extension = Header::new_ustar();
        extension.set_entry_type(EntryType::XHeader);
        extension.set_mode(0o644);
        put(&mut extension.as_old_mut().name, b"pax-header");
        extension.set_size(records.len() as u64);
        extension.set_cksum();
        out.extend_from_slice(extension.as_bytes());
        out.extend_from_slice(&records);
        let rest = (512 - records.len() % 512) % 512;
        out.extend(std::iter::repeat_n(0, rest));
    }
    put(&mut header.as_old_mut().name, &shown);
    put(&mut header.as_old_mut().linkname, target.unwrap_or_default());
    header.set_size(size);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// A time as pax archives write it: before 1970 the fraction counts away from zero.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

fn put(field: &mut [u8; 100], text: &[u8]) {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(decimal(981_173_106, 500_000_000), "981173106.500000000");
        assert_eq!(decimal(-2, 999_999_999), "-1.000000001");
        assert_eq!(decimal(-1, 0), "-1.000000000");
    }
}
