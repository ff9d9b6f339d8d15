use proptest::prelude::*;

use super::*;
use crate::AclKind;

const LIMITS: Limits = Limits { extension: 1 << 20, globals: 64 << 10, segments: 1 << 18 };

fn walk(bytes: &[u8]) -> io::Result<Vec<Entry>> {
    let mut reader = ArchiveReader::new(bytes, LIMITS);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    reader.drain()?;
    Ok(entries)
}

/// An archive of one file with these pax records.
fn with_records(kind: EntryType, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(0);
    builder.append_data(&mut header, "in-header", io::empty()).unwrap();
    builder.into_inner().unwrap()
}

proptest! {
    #[test]
    fn any_bytes_are_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = walk(&bytes);
    }

    #[test]
    fn damaged_archives_are_answered_without_panic(at in 0usize..4096, value in any::<u8>()) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(700);
        header.set_mode(0o644);
        builder.append_data(&mut header, "x".repeat(300), &[1; 700][..]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        let length = bytes.len();
        bytes[at % length] = value;
        let _ = walk(&bytes);
    }
}

#[test]
fn long_names_and_exact_bytes_survive() {
    let mut builder = tar::Builder::new(Vec::new());
    let name = "d/".repeat(90) + "x";
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4755);
    builder.append_data(&mut header, &name, &b"abc"[..]).unwrap();
    let entries = walk(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries[0].path, name.as_bytes());
    assert_eq!((entries[0].size, entries[0].mode), (3, 0o4755));
}

#[test]
fn sizes_beyond_every_number_are_refused() {
    for size in [u64::MAX, u64::MAX - 510, 1 << 63] {
        let mut header = Header::new_ustar();
        header.set_path("x").unwrap();
        header.set_size(size);
        header.set_cksum();
        let error = walk(header.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("claims to have"), "{error}");
        // In a pax record, too.
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", size.to_string().as_bytes())]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(1024);
        header.set_size(0);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        assert!(walk(&bytes).unwrap_err().to_string().contains("claims to have"));
    }
}

#[test]
fn records_with_line_feeds_are_whole_and_empty_ones_take_back() {
    let text: &[u8] = b"user::rw-\nuser:ann:rw-\ngroup::r--\nmask::rw-\nother::r--\n";
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.acl.access", text),
        ("SCHILY.acl.default", b"\n"),
        ("SCHILY.xattr.user.a", b"1\n2=3\0"),
        ("mtime", b"1.5"),
        ("path", b"in\nrecord"),
        ("uid", b""),
    ];
    let entries = walk(&with_records(EntryType::Regular, &records)).unwrap();
    assert_eq!(entries[0].path, b"in\nrecord");
    assert_eq!(entries[0].acls, [(AclKind::Access, text.to_vec())]);
    assert_eq!(entries[0].xattrs, [(b"user.a".to_vec(), b"1\n2=3\0".to_vec())]);
    assert_eq!((entries[0].modified, entries[0].modified_ns, entries[0].uid), (1, 500_000_000, 0));
    let entries = walk(&with_records(EntryType::Regular, &[("path", b"")])).unwrap();
    assert_eq!(entries[0].path, b"in-header");
    for (key, value) in [("mtime", "yesterday"), ("size", "x"), ("uid", "-1"), ("gid", "4294967295")] {
        let error = walk(&with_records(EntryType::Regular, &[(key, value.as_bytes())])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{key}");
    }
}

#[test]
fn files_whose_names_end_in_a_slash_are_directories() {
    let entries = walk(&with_records(EntryType::Regular, &[("path", b"old/")])).unwrap();
    assert_eq!(entries[0].kind, EntryType::Directory);
}

#[test]
fn what_comes_before_an_entry_is_bounded() {
    let long = vec![b'x'; (1 << 20) + 1];
    let error = walk(&with_records(EntryType::Regular, &[("comment", &long)])).unwrap_err();
    assert!(error.to_string().contains("extension header"), "{error}");
    let value = vec![b'x'; 64 << 10];
    let mut global = Header::new_ustar();
    global.set_entry_type(EntryType::XGlobalHeader);
    let mut data = Vec::new();
    pax::append(&mut data, b"comment", &value);
    global.set_size(data.len() as u64);
    global.set_cksum();
    data.resize(data.len().next_multiple_of(512), 0);
    let error = walk(&[&global.as_bytes()[..], &data].concat()).unwrap_err();
    assert!(error.to_string().contains("global headers"), "{error}");
}

#[test]
fn a_cut_archive_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(5000);
    header.set_mode(0o644);
    builder.append_data(&mut header, "x", &[1; 5000][..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    for cut in [3000, 100] {
        assert_eq!(walk(&bytes[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    let mut reader = ArchiveReader::new(&bytes[..3000], LIMITS);
    reader.next_entry().unwrap();
    assert!(reader.read_to_end(&mut Vec::new()).is_err(), "a file that is cut off was taken for whole");
}
