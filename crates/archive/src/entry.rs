//! One entry: what its header and its records say of it.

use std::io;

use tar::{EntryType, Header};

use crate::acl::AclKind;
use crate::pax;
use crate::stream::{Records, bad};

/// One entry; its data is read through the [`crate::ArchiveReader`] until the next entry is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as the archive has it: absolute, with `..`, or with any bytes but zeros perhaps.
    pub path: Vec<u8>,
    /// Target of a link; empty for everything else.
    pub link: Vec<u8>,
    /// Type. A regular file whose name ends in `/` is a directory, as in archives of the first format.
    pub kind: EntryType,
    /// Permissions, set-id and sticky bits: at most `0o7777`.
    pub mode: u16,
    /// Number of its user; 0 if the header has none.
    pub uid: u32,
    /// Number of its group; 0 if the header has none.
    pub gid: u32,
    /// Last change of its content, in seconds since 1970, rounded down.
    pub modified: i64,
    /// Nanoseconds after [`Self::modified`].
    pub modified_ns: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Offset and length of each segment of a sparse file, in order, inside of it; the entry's data are these segments.
    pub segments: Option<Vec<(u64, u64)>>,
    /// Names and values of extended attributes, in order of name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists as text.
    pub acls: Vec<(AclKind, Vec<u8>)>,
}

/// Names from GNU extension headers.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
}

impl Entry {
    /// Reads all but the map of a sparse file; `stored` bytes of data follow.
    pub(crate) fn of(header: &Header, stored: u64, records: &Records, names: Names) -> io::Result<Self> {
        let field = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let (modified, modified_ns) = match given(records, b"mtime") {
            Some(text) => time(text).ok_or_else(|| bad("the time of an entry in it is no number"))?,
            None => (modified(header), 0),
        };
        let in_header = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
        Ok(Self {
            path: given(records, b"path")
                .cloned()
                .or(names.path)
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            link: given(records, b"linkpath").cloned().or(names.link).or_else(in_header).unwrap_or_default(),
            kind: header.entry_type(),
            mode: u16::try_from(header.mode()? & 0o7777).unwrap_or(0),
            uid: id(number(records, b"uid")?.or_else(|| header.uid().ok()))?,
            gid: id(number(records, b"gid")?.or_else(|| header.gid().ok()))?,
            modified,
            modified_ns,
            device: (field(header.device_major()), field(header.device_minor())),
            size: stored,
            segments: None,
            xattrs: xattrs(records),
            acls: acls(records),
        })
    }

    /// Makes a directory of a regular file whose name ends in `/`. Its data, if there are any, are skipped.
    pub(crate) fn settle_kind(&mut self) {
        let is_file = matches!(self.kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        if is_file && self.path.ends_with(b"/") {
            self.kind = EntryType::Directory;
            self.size = 0;
            self.segments = None;
        }
    }
}

/// A record that is there and not empty: an empty one takes back what was said before (POSIX, `pax`).
fn given<'a>(records: &'a Records, key: &[u8]) -> Option<&'a Vec<u8>> {
    records.get(key).filter(|value| !value.is_empty())
}

/// A number from a record, if it is there.
pub(crate) fn number(records: &Records, key: &[u8]) -> io::Result<Option<u64>> {
    let Some(text) = given(records, key) else { return Ok(None) };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    let shown = String::from_utf8_lossy(key);
    number.map(Some).ok_or_else(|| bad(format!("the record `{shown}` of an entry in it is no number")))
}

/// A user's or group's number; a header without one means root.
fn id(value: Option<u64>) -> io::Result<u32> {
    let value = value.unwrap_or(0);
    // The last number means none.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| bad(format!("an entry in it belongs to {value}, which is no user or group of Linux")))
}

/// The time in a header. GNU tar writes one before 1970 as a number in base 256 whose first bits are set.
fn modified(header: &Header) -> i64 {
    let field = &header.as_old().mtime;
    if field[0] == 0xff {
        return field.iter().fold(-1, |time: i64, byte| time.wrapping_shl(8) | i64::from(*byte));
    }
    header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
}

/// Seconds, rounded down, and nanoseconds of a decimal number; digits after the ninth of the fraction are cut off.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if part.bytes().any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    let part: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (whole, part): (u64, u32) = (whole.parse().ok()?, part.parse().ok()?);
    let total = sign * (i128::from(whole) * 1_000_000_000 + i128::from(part));
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
    Some((seconds, u32::try_from(total.rem_euclid(1_000_000_000)).ok()?))
}

fn xattrs(records: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    let named = records.iter().filter_map(|(key, value)| Some((key.strip_prefix(pax::XATTR)?, value)));
    named.map(|(name, value)| (name.to_vec(), value.clone())).collect()
}

fn acls(records: &Records) -> Vec<(AclKind, Vec<u8>)> {
    // Some writers give a list of nothing to what has none.
    let lists = records.iter().filter(|(_, text)| !text.trim_ascii().is_empty());
    lists.filter_map(|(key, text)| Some((AclKind::of_record(key)?, text.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down_to_seconds_and_nanoseconds() {
        for (text, expected) in [
            (&b"-0.25"[..], (-1, 750_000_000)),
            (b"-86400", (-86_400, 0)),
            (b"7.000000001", (7, 1)),
            (b"7.0000000019", (7, 1)),
            (b"-1.000000001", (-2, 999_999_999)),
            (b"981173106.5", (981_173_106, 500_000_000)),
        ] {
            assert_eq!(time(text), Some(expected));
        }
        for bad in [&b""[..], b"x", b"1.x", b"--1", b"99999999999999999999", b"\xff"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
        let mut header = Header::new_gnu();
        header.as_old_mut().mtime = [0xff; 12];
        assert_eq!(modified(&header), -1);
        header.as_old_mut().mtime[10] = 0xfe;
        assert_eq!(modified(&header), -257);
    }
}
