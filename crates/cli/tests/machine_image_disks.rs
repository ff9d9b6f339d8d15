//! Disks of virtual machines become images: a VM reads them.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::Home;

/// First sector of the partitions.
const FIRST: [u32; 2] = [2_048, 34_816];
const SECTORS: u32 = 32_768;

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A bare ext4 of 16 MiB with what is in `folder`.
fn ext4(folder: &Path, file: &Path) {
    fs::File::create(file).unwrap().set_len(u64::from(SECTORS) * 512).unwrap();
    tool(
        "mke2fs",
        &["-q", "-t", "ext4", "-b", "1024", "-d", folder.to_str().unwrap(), file.to_str().unwrap()],
    );
}

/// A disk with a table of two partitions that hold these bytes.
fn partitioned(disk: &Path, parts: [&[u8]; 2]) {
    let file = fs::File::create(disk).unwrap();
    file.set_len(u64::from(FIRST[1] + SECTORS + 2_048) * 512).unwrap();
    for (number, (first, part)) in FIRST.iter().zip(parts).enumerate() {
        let mut entry = [0u8; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&SECTORS.to_le_bytes());
        file.write_all_at(&entry, 446 + 16 * number as u64).unwrap();
        file.write_all_at(part, u64::from(*first) * 512).unwrap();
    }
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

#[test]
fn the_root_of_a_disk_becomes_an_image() {
    let Some(home) = Home::open() else { return };
    let path = |name: &str| -> PathBuf { home.root().join(name) };
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let root = path("tree");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::write(root.join("etc/name"), "of the disk\n").unwrap();
    fs::write(root.join("usr/bin/tool"), "tool").unwrap();
    fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(root.join("etc/name"), Some(1000), Some(70_000)).unwrap();
    fs::hard_link(root.join("etc/name"), root.join("etc/second")).unwrap();
    ext4(&root, &path("bare.raw"));
    let bare = fs::read(path("bare.raw")).unwrap();
    // Beside a partition without a root.
    fs::create_dir(path("other")).unwrap();
    ext4(&path("other"), &path("other.raw"));
    let other = fs::read(path("other.raw")).unwrap();
    partitioned(&path("parts.raw"), [&other, &bare]);
    tool("qemu-img", &["convert", "-O", "qcow2", &text("parts.raw"), &text("parts.qcow2")]);
    let mut digests = Vec::new();
    for disk in ["bare.raw", "parts.raw", "parts.qcow2"] {
        let before = fs::read(path(disk)).unwrap();
        home.must(&["image", "import", &text(disk), "--name", "disk"]);
        assert!(before == fs::read(path(disk)).unwrap(), "{disk} was changed");
        digests.push(home.json(&["image", "inspect", "disk"])["digest"].clone());
    }
    assert!(digests[0] == digests[1] && digests[1] == digests[2], "{digests:?}");
    home.must(&["image", "export", "disk", "-o", &text("disk.tar")]);
    let folder = path("unpacked");
    fs::create_dir(&folder).unwrap();
    tool("tar", &["-xf", &text("disk.tar"), "-C", folder.to_str().unwrap()]);
    let layer = fs::read_dir(folder.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = layer.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let output = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(layer).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| {
        listed.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {listed}"))
    };
    assert!(line("etc/name").starts_with("-rw") && line("etc/name").contains("1000/70000"), "{listed}");
    assert!(line("etc/second").contains("link to etc/name"), "{listed}");
    assert!(line("usr/bin/tool").starts_with("-rws--x--x"), "{listed}");

    // Refused by name, and nothing is left.
    let mut luks = vec![0; 4096];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    partitioned(&path("luks.raw"), [&other, &luks]);
    partitioned(&path("two.raw"), [&bare, &bare]);
    partitioned(&path("none.raw"), [&other, &[0; 512]]);
    fs::copy(path("bare.raw"), path("unclean.raw")).unwrap();
    tool("debugfs", &["-w", "-R", "feature needs_recovery", &text("unclean.raw")]);
    for (disk, part) in [
        ("luks.raw", "LUKS"),
        ("two.raw", "2 of its partitions"),
        ("none.raw", "no Linux root"),
        ("unclean.raw", "e2fsck"),
    ] {
        let (code, problem) = home.must_fail(&["image", "import", &text(disk), "--name", "refused"]);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(code == 101 && detail.contains(part), "{disk}: {code} {problem}");
    }
    // A file that names another one of the host is refused before any VM starts.
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", &text("parts.raw"), "-F", "raw", &text("names.qcow2")],
    );
    let (code, problem) = home.must_fail(&["image", "import", &text("names.qcow2"), "--name", "refused"]);
    assert!(code == 101 && problem.to_string().contains("backing file"), "{code} {problem}");
    assert_eq!(home.states(), []);
    assert_eq!(home.must_fail(&["image", "inspect", "refused"]).0, 102);
}
