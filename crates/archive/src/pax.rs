//! Pax extension headers: records of the form `LENGTH KEY=VALUE\n`.
//!
//! The length counts the whole record, itself and the line feed included, so that a value may hold any byte (POSIX.1-2017,
//! `pax`, "pax Extended Header"). Keys hold no `=`.

use std::io;

/// Most digits of a length: no header has more than 8 MiB.
const DIGITS_MAX: usize = 8;

/// Prefix of records with extended attributes; the name of the attribute follows (star, GNU tar, libarchive).
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// Iterator over the records of one extension header, as pairs of key and value.
///
/// Ends at the first error.
#[derive(Debug, Clone)]
pub struct Records<'a>(&'a [u8]);

/// Splits the data of a pax extension header into records. Zero bytes at its end are padding.
#[must_use]
pub const fn records(data: &[u8]) -> Records<'_> {
    Records(data)
}

impl<'a> Iterator for Records<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let data = std::mem::take(&mut self.0);
        if data.iter().all(|byte| *byte == 0) {
            return None;
        }
        let Some((key, value, rest)) = split(data) else {
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a pax header cannot be read")));
        };
        self.0 = rest;
        Some(Ok((key, value)))
    }
}

/// Key and value of the first record, and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(DIGITS_MAX + 1).position(|byte| *byte == b' ')?;
    let digits = data[..space].iter().all(u8::is_ascii_digit).then_some(&data[..space])?;
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &data[length..]))
}

/// Appends a record. A key must not hold `=`: its reader would take the rest for the value.
pub fn append(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use microvm_fuzz::Fuzz;
    use proptest::prelude::*;

    use super::*;

    fn all(data: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        records(data).map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    }

    fn write(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (key, value) in records {
            append(&mut data, key, value);
        }
        data
    }

    proptest! {
        #[test]
        fn records_come_back(pairs in prop::collection::vec(("[a-zA-Z.]{1,20}", any::<Vec<u8>>()), 0..5)) {
            let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
            prop_assert_eq!(all(&write(&pairs)).unwrap(), pairs);
        }
    }

    #[test]
    fn lengths_count_their_digits() {
        for size in [1, 80, 90, 91, 92, 93, 94, 95, 985, 990, 995, 4000] {
            let mut data = Vec::new();
            append(&mut data, b"path", &vec![b'x'; size]);
            let text = String::from_utf8(data.clone()).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, data.len());
        }
    }

    #[test]
    fn values_may_hold_line_feeds_and_padding_ends_them() {
        let data = [&b"31 SCHILY.acl.access=user::rw-\n\n"[..], b"8 a=b=c\n", &[0; 20]].concat();
        let expected: [(&[u8], &[u8]); 2] = [(b"SCHILY.acl.access", b"user::rw-\n"), (b"a", b"b=c")];
        let found = all(&data[1..]);
        assert!(found.is_err(), "a length that is too short was taken");
        let data = [&b"32 SCHILY.acl.access=user::rw-\n\n"[..], b"8 a=b=c\n", &[0; 20]].concat();
        let found = all(&data).unwrap();
        assert_eq!(found.iter().map(|(key, value)| (&key[..], &value[..])).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in
            ["5 a=b", "x a=b\n", "99 a=b\n", "0 a=b\n", "1 a=b\n", "6 abc\n", "+6 a=b\n", "\n", "\08 a=b\n"]
        {
            assert!(all(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn records_of_any_bytes() {
        let seed = write(&[
            (b"path".to_vec(), b"a\nb".to_vec()),
            (b"SCHILY.acl.access".to_vec(), b"user::rwx\ngroup::r-x\nother::r-x\n".to_vec()),
        ]);
        Fuzz::new("pax").seed(seed).words(&[b"20 ", b"=", b"\n", b"\0", b"path="]).memory(1 << 20, 64).run(
            |data| {
                match all(data) {
                    Ok(found) => {
                        // What was read means the same when it is written again.
                        assert_eq!(all(&write(&found)).unwrap(), found);
                        found.len().to_string()
                    }
                    Err(error) => error.to_string(),
                }
            },
        );
    }
}
