//! Fuzzing of archives that a guest made: nothing outside of the target is touched.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use microvm_fuzz::Fuzz;
use tar::{Builder, Header};

use super::*;

fn sound() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let mut entry = |kind, name: &str, link: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if link.is_empty() {
            tar.append_data(&mut header, name, content).unwrap();
        } else {
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    entry(EntryType::Directory, "d", "", b"");
    entry(EntryType::Regular, "d/f", "", b"content");
    entry(EntryType::Symlink, "d/l", "../d/f", b"");
    entry(EntryType::Link, "h", "d/f", b"");
    entry(EntryType::Regular, &"long/".repeat(30), "", b"x");
    entry(EntryType::Symlink, "up", "..", b"");
    entry(EntryType::Symlink, "o", "../outside", b"");
    entry(EntryType::Fifo, "fifo", "", b"");
    let records = [("major", "1"), ("minor", "0"), ("name", "sparse"), ("realsize", "9000")]
        .map(|(key, value)| (format!("GNU.sparse.{key}"), value));
    tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_bytes()))).unwrap();
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(516);
    let mut content = b"1\n4096\n4\n".to_vec();
    content.resize(512, 0);
    content.extend(b"data");
    tar.append_data(&mut header, "GNUSparseFile.0/sparse", &content[..]).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn archives_of_a_hostile_guest() {
    let whole = tempfile::tempdir().unwrap();
    let (target, outside) = (whole.path().join("target"), whole.path().join("outside"));
    fs::write(&outside, "untouched").unwrap();
    Fuzz::new("unpack")
        .seed(sound())
        .words(&[
            b"../",
            b"../outside",
            b"up/",
            b"d/l/",
            b"/",
            b"\0",
            b"12 path=../x\n",
            b"size=",
            b"GNU.sparse.realsize=99999\n",
            b"\n18446744073709551615\n",
            b"ustar\x0000",
        ])
        .repair(microvm_fuzz::tar::repair)
        .memory(4 << 20, 200)
        .run(|bytes| {
            // Links that lead out are made, and nothing may be written through them; or they are left out.
            let keep = bytes.first().is_none_or(|first| first % 4 > 0);
            let links = if keep { OutsideLinks::Keep } else { OutsideLinks::Skip };
            fs::create_dir(&target).unwrap();
            let told = unpack(bytes, &target, b"", false, &mut Rules { budget: Budget::new(1 << 20), links });
            let mut names: Vec<_> =
                fs::read_dir(whole.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["outside", "target"], "something else was made");
            assert_eq!(fs::read(&outside).unwrap(), b"untouched");
            let mut outcome = fs::read_dir(&target).unwrap().map(|_| 'e').take(9).collect::<String>();
            fs::remove_dir_all(&target).unwrap();
            outcome.push_str(&told.map_or_else(|error| error.to_problem().detail, |_| "fine".to_owned()));
            outcome
        });
}
