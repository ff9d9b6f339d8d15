//! Tests of trees with holes: packed and unpacked, with GNU tar at the other end, and as a hostile guest would make them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{Budget, OutsideLinks, Rules, pack, unpack};
use crate::error::ClientError;

/// Holes and data of every kind; the names are those of files, one of them too long for a header.
fn tree(directory: &Path) -> Vec<String> {
    let folder = directory.join("folder");
    fs::create_dir(&folder).unwrap();
    let long = format!("folder/{}", "long".repeat(40));
    let mut names = Vec::new();
    let mut file = |name: &str, size: u64, data: &[(u64, usize)]| {
        let file = File::create(directory.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in data {
            file.write_all_at(&vec![b'x'; *length], *offset).unwrap();
        }
        names.push(name.to_owned());
    };
    file("empty", 0, &[]);
    file("full", 100_000, &[(0, 100_000)]);
    file("only-a-hole", 1 << 27, &[]);
    file("folder/both-ends", 1 << 26, &[(0, 1), ((1 << 26) - 5, 5)]);
    file("folder/hole-last", 50_000_001, &[(40_960, 70_000)]);
    file(&long, 3 << 20, &(0..100).map(|at| (at * 20_480 + 5, 77)).collect::<Vec<_>>());
    names
}

fn packed(directory: &Path, holes: bool) -> Vec<u8> {
    let mut data = Vec::new();
    pack::pack(directory, Path::new("out"), holes, &mut data).unwrap();
    data
}

fn unpacked(data: &[u8], target: &Path, limit: u64) -> Result<(), ClientError> {
    let mut rules = Rules { budget: Budget::new(limit), links: OutsideLinks::Keep };
    unpack::unpack(data, target, b"out", false, &mut rules).map(drop)
}

/// Hash of the content, and bytes on the disk.
fn facts(path: &Path) -> (String, u64) {
    let (mut hash, mut file) = (Sha256::new(), File::open(path).unwrap());
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part).unwrap() {
            0 => break,
            count => hash.update(&part[..count]),
        }
    }
    (format!("{:x?}", hash.finalize()), fs::metadata(path).unwrap().blocks() * 512)
}

fn expect_same(names: &[String], one: &Path, other: &Path) {
    for name in names {
        let (one, other) = (one.join(name), other.join(name));
        assert_eq!(facts(&one), facts(&other), "{name}");
        assert_eq!(fs::metadata(&one).unwrap().mtime_nsec(), fs::metadata(&other).unwrap().mtime_nsec());
    }
}

#[test]
fn holes_of_a_tree_stay_holes() {
    let whole = tempfile::tempdir().unwrap();
    let (source, target) = (whole.path().join("source"), whole.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&target).unwrap();
    let names = tree(&source);
    let data = packed(&source, true);
    assert!(data.len() < 2 << 20, "{} bytes were packed", data.len());
    unpacked(&data, &target, 2 << 20).unwrap();
    expect_same(&names, &source, &target);
    // For agents that do not know maps every byte is there.
    fs::remove_file(source.join("only-a-hole")).unwrap();
    assert!(packed(&source, false).len() > 1 << 26);
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let whole = tempfile::tempdir().unwrap();
    let (source, target) = (whole.path().join("source"), whole.path().join("target"));
    fs::create_dir_all(source.join("folder")).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(source.join("folder/last"), "content").unwrap();
    let long = "long".repeat(40);
    for name in ["a", &long] {
        fs::hard_link(source.join("folder/last"), source.join(name)).unwrap();
    }
    fs::write(source.join("alone"), "content").unwrap();
    unpacked(&packed(&source, true), &target, 1 << 20).unwrap();
    let inode = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("folder/last"));
    assert_eq!(inode("a"), inode(&long));
    assert_ne!(inode("a"), inode("alone"));
    assert_eq!(fs::read(target.join("folder/last")).unwrap(), b"content");
}

#[test]
fn gnu_tar_reads_what_is_packed_and_packs_what_is_read() {
    let whole = tempfile::tempdir().unwrap();
    let (source, target, back) =
        (whole.path().join("source"), whole.path().join("out"), whole.path().join("back"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&back).unwrap();
    let names = tree(&source);
    let archive = whole.path().join("archive");
    fs::write(&archive, packed(&source, true)).unwrap();
    let tar = |arguments: &[&str]| {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(whole.path()).args(arguments).arg("-f").arg(&archive).arg("out");
        let ended = tar.output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    };
    tar(&["-x"]);
    expect_same(&names, &source, &target);
    tar(&["-cS", "--format=posix"]);
    unpacked(&fs::read(&archive).unwrap(), &back, 2 << 20).unwrap();
    expect_same(&names, &source, &back);
}

/// An archive of one sparse file that says this of itself.
fn crafted(name: &str, size: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let records = [("major", "1"), ("minor", "0"), ("name", name), ("realsize", size)]
        .map(|(key, value)| (format!("GNU.sparse.{key}"), value));
    builder
        .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_bytes())))
        .unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, "out/GNUSparseFile.0/x", content).unwrap();
    builder.into_inner().unwrap()
}

fn with_map(map: &str, data: &[u8]) -> Vec<u8> {
    let mut content = map.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    [&content, data].concat()
}

#[test]
fn a_map_that_lies_is_refused_and_leaves_nothing() {
    let whole = tempfile::tempdir().unwrap();
    let target = whole.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(whole.path().join("outside"), "untouched").unwrap();
    let sound = with_map("2\n0\n4\n4096\n4\n", b"datadata");
    unpacked(&crafted("out/fine", "8192", &sound), &target, 8).unwrap();
    let content = fs::read(target.join("fine")).unwrap();
    assert_eq!((content.len(), &content[..4], &content[4096..4100]), (8192, &b"data"[..], &b"data"[..]));
    fs::remove_file(target.join("fine")).unwrap();
    for (what, size, content) in [
        ("less data than promised", "8192", with_map("2\n0\n4\n4096\n5\n", b"datadata")),
        ("parts that overlap", "8192", with_map("2\n0\n4\n3\n4\n", b"datadata")),
        ("a part behind the end", "4099", sound.clone()),
        ("no map", "8192", b"datadata".to_vec()),
        ("a map without its end", "8192", b"2\n0\n4\n4096\n4\n".to_vec()),
        ("longer than any file", "18446744073709551615", sound.clone()),
        ("longer than files are taken", "99999999999999999", sound.clone()),
        ("no size", "x", sound.clone()),
    ] {
        assert!(unpacked(&crafted("out/bad", size, &content), &target, 1 << 20).is_err(), "{what}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{what}");
    }
    // A name is a name, wherever it stands.
    unpacked(&crafted("out/../../outside", "8192", &sound), &target, 1 << 20).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    assert_eq!(fs::read(whole.path().join("outside")).unwrap(), b"untouched");
    // Data is paid for, holes are not.
    assert!(unpacked(&crafted("out/dear", "8192", &sound), &target, 7).is_err());
    unpacked(&crafted("out/hole", "1099511627776", &with_map("0\n", b"")), &target, 0).unwrap();
    assert_eq!(fs::metadata(target.join("hole")).unwrap().len(), 1 << 40);
}

/// A second name in another directory is made while that directory is open.
#[test]
fn directories_keep_their_times_beside_names_of_files_elsewhere() {
    let whole = tempfile::tempdir().unwrap();
    let (source, target) = (whole.path().join("source"), whole.path().join("target"));
    for folder in ["a", "b"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    fs::create_dir(&target).unwrap();
    fs::write(source.join("a/file"), "content").unwrap();
    fs::hard_link(source.join("a/file"), source.join("b/name")).unwrap();
    let archive = whole.path().join("archive");
    let transform = "--transform=s,^[.],out,";
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "--sort=name", transform, "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&source)
        .arg(".");
    assert!(tar.status().unwrap().success());
    unpacked(&fs::read(&archive).unwrap(), &target, 1 << 20).unwrap();
    for folder in ["a", "b"] {
        let modified = |top: &Path| fs::metadata(top.join(folder)).unwrap().modified().unwrap();
        assert_eq!(modified(&target), modified(&source), "{folder}");
    }
}
