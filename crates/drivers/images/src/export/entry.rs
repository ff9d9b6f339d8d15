//! Entries of a tar archive: what a header of POSIX cannot hold stands in pax records before it.

use std::io::{self, Write};

use microvm_archive::pax;
use tar::{EntryType, Header};

use crate::erofs::Attributes;

/// Bytes of a block of tar.
const BLOCK: usize = 512;
/// Bytes of names and of link targets in a header.
const NAME: usize = 100;
/// Greatest owner that a header holds: seven octal digits.
const OWNER_MAX: u32 = 0o7_777_777;
/// Greatest size that a header holds: eleven octal digits.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// An entry to be written.
pub(super) struct NewEntry<'a> {
    /// Its name; a directory's without a slash at its end.
    pub(super) name: &'a [u8],
    /// What it links to; empty for all but links.
    pub(super) link: &'a [u8],
    pub(super) kind: EntryType,
    pub(super) attributes: &'a Attributes,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Bytes that follow.
    pub(super) size: u64,
    /// Further pax records; those of sparse files have the name among them.
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes the head of an entry; its data follows, and [`pad`].
pub(super) fn begin(out: &mut impl Write, entry: &NewEntry<'_>) -> io::Result<()> {
    let NewEntry { name, link, kind, attributes, device, size, records } = entry;
    let mut records = records.clone();
    let mut said = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
    if name.len() > NAME {
        said("path", name.to_vec());
    }
    if link.len() > NAME {
        said("linkpath", link.to_vec());
    }
    let mut header = Header::new_ustar();
    for (key, id) in [("uid", attributes.uid), ("gid", attributes.gid)] {
        if id > OWNER_MAX {
            said(key, id.to_string().into_bytes());
        }
    }
    header.set_uid(u64::from(attributes.uid.min(OWNER_MAX)));
    header.set_gid(u64::from(attributes.gid.min(OWNER_MAX)));
    if *size > SIZE_MAX {
        said("size", size.to_string().into_bytes());
    }
    header.set_size((*size).min(SIZE_MAX));
    if attributes.modified_ns != 0 || !(0..=SIZE_MAX.cast_signed()).contains(&attributes.modified) {
        said("mtime", time(attributes.modified, attributes.modified_ns).into_bytes());
    }
    header.set_mtime(attributes.modified.clamp(0, SIZE_MAX.cast_signed()).unsigned_abs());
    if *kind != EntryType::Link {
        for xattr in &attributes.xattrs {
            records.push(([pax::XATTR, &xattr.name[..]].concat(), xattr.value.clone()));
        }
    }
    if !records.is_empty() {
        let mut body = Vec::new();
        records.iter().for_each(|(key, value)| pax::append(&mut body, key, value));
        let mut pax = Header::new_ustar();
        put(&mut pax.as_old_mut().name, b"PaxHeaders");
        pax.set_entry_type(EntryType::XHeader);
        pax.set_mode(0o644);
        pax.set_uid(0);
        pax.set_gid(0);
        pax.set_mtime(0);
        pax.set_size(body.len() as u64);
        pax.set_cksum();
        out.write_all(pax.as_bytes())?;
        out.write_all(&body)?;
        pad(out, body.len() as u64)?;
    }
    put(&mut header.as_old_mut().name, name);
    put(&mut header.as_old_mut().linkname, link);
    header.set_entry_type(*kind);
    header.set_mode(u32::from(attributes.mode));
    header.set_device_major(device.0)?;
    header.set_device_minor(device.1)?;
    header.set_cksum();
    out.write_all(header.as_bytes())
}

/// Fills the last block of data of this length.
pub(super) fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
}

/// Ends an archive.
pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// As much as fits.
fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Seconds since 1970 with a fraction, also before it.
fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds != 0 {
        // -1 s and 5 ns are -0.999999995.
        let (whole, rest) = (-(seconds + 1), 1_000_000_000 - nanoseconds.min(999_999_999));
        return format!("-{whole}.{rest:09}");
    }
    if nanoseconds == 0 { seconds.to_string() } else { format!("{seconds}.{nanoseconds:09}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_have_their_fraction_below() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(-5, 0), "-5");
        assert_eq!(time(1, 5), "1.000000005");
        assert_eq!(time(-1, 5), "-0.999999995");
        assert_eq!(time(-86_400, 5), "-86399.999999995");
    }
}
