//! Names that do not fit into a header: GNU long names and pax records, bounded before they are read.

use std::io::{self, Read};

use microvm_archive::pax;
use microvm_archive::sparse_map::SparseRecords;
use microvm_types::files::FileTime;
use tar::{Entry, EntryType};

/// Largest extension that is read, in bytes; a name has at most 4096 in Linux, and extended attributes may stand
/// beside it.
const EXTENSION_MAX: u64 = 1 << 20;

/// Values of extension headers for the entry to come.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<FileTime>,
    sparse: SparseRecords,
}

/// Name and link of one entry, and its time if that is not in the header alone.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) modified: Option<FileTime>,
    /// Bytes of a sparse file, zeros included: its content begins with a map.
    pub(super) sparse: Option<u64>,
}

impl Extensions {
    /// Takes in an entry that describes the next one; `false` if it is an entry of its own.
    pub(super) fn take_in(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(without_nul(read(entry)?)),
            EntryType::GNULongLink => self.link = Some(without_nul(read(entry)?)),
            EntryType::XHeader => self.records(&read(entry)?)?,
            // It speaks of all that follows, and nothing in it matters here.
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The names of the entry that all this was about.
    pub(super) fn finish(self, entry: &Entry<'_, impl Read>) -> io::Result<Names> {
        // The walk from entry to entry goes by the header alone.
        if self.size.is_some_and(|size| size != entry.size()) {
            return Err(invalid("header and extension tell different sizes"));
        }
        let (name, sparse) = self.sparse.finish()?.map(|sparse| (sparse.name, sparse.size)).unzip();
        let path = name.or(self.path).unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let in_header = || entry.header().link_name_bytes().unwrap_or_default().into_owned();
        Ok(Names { path, link: self.link.unwrap_or_else(in_header), modified: self.modified, sparse })
    }

    fn records(&mut self, data: &[u8]) -> io::Result<()> {
        let broken = || invalid("a pax record is broken");
        for record in pax::records(data) {
            let (key, value) = record?;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                    self.size = Some(size.ok_or_else(broken)?);
                }
                b"mtime" => {
                    let time = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.modified = Some(time.ok_or_else(broken)?);
                }
                _ => self.sparse.take_in(key, value),
            }
        }
        Ok(())
    }
}

fn read(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let size = entry.size();
    if size > EXTENSION_MAX {
        return Err(invalid(&format!("an extension has {size} bytes, at most {EXTENSION_MAX} are read")));
    }
    let mut data = Vec::new();
    entry.read_to_end(&mut data)?;
    // An archive that was cut off ends here as if it were complete.
    if data.len() as u64 == size { Ok(data) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        pax::append(&mut data, key.as_bytes(), value);
        data
    }

    proptest! {
        #[test]
        fn values_of_any_bytes_come_back(path: Vec<u8>, link: Vec<u8>, size: u64) {
            let data = [
                record("path", &path), record("other", b"x=y\n"), record("linkpath", &link),
                record("size", size.to_string().as_bytes()),
            ];
            let mut extensions = Extensions::default();
            extensions.records(&data.concat()).unwrap();
            prop_assert_eq!(extensions.path, Some(path));
            prop_assert_eq!(extensions.link, Some(link));
            prop_assert_eq!(extensions.size, Some(size));
        }

        #[test]
        fn no_records_make_it_panic(data: Vec<u8>) {
            let _ = Extensions::default().records(&data);
        }
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            "5 a=b",
            "x path=a\n",
            "99 path=a\n",
            "0 a=b\n",
            "1 a=b\n",
            "6 pat\n",
            "9 size=x\n\n",
            "11 mtime=x\n",
        ] {
            assert!(Extensions::default().records(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
