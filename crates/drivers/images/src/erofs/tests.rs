//! Images are checked by the distribution's own `fsck.erofs`, and mounted where that is possible.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;

use super::*;

struct Image {
    directory: tempfile::TempDir,
    tree: Tree,
    spool: Spool,
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::create(Utf8Path::from_path(directory.path()).unwrap().join("spool")).unwrap();
        Self { directory, tree: Tree::new(1_000_000, 1 << 30, TreeMemory::of(1 << 30)), spool }
    }

    fn put(&mut self, path: &[u8], kind: Kind) {
        self.put_with(
            path,
            Attributes {
                mode: 0o640,
                uid: 70_000,
                gid: 3,
                modified: 1_700_000_000,
                modified_ns: 5,
                xattrs: Vec::new(),
            },
            kind,
        );
    }

    fn put_with(&mut self, path: &[u8], attributes: Attributes, kind: Kind) {
        self.tree.insert(path, attributes, kind).unwrap();
    }

    fn file(&mut self, path: &[u8], content: &[u8]) {
        let data = self.spool.store(content).unwrap();
        self.put(path, Kind::File(data));
    }

    fn write(self) -> (tempfile::TempDir, camino::Utf8PathBuf, Written) {
        let path = Utf8Path::from_path(self.directory.path()).unwrap().join("image");
        let written = write(&self.tree, self.spool, &path, &Cancel::default(), &|_, _| {}).unwrap();
        (self.directory, path, written)
    }
}

fn fsck(path: &Utf8Path) {
    match Command::new("fsck.erofs").arg("-d9").arg(path).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(_) => println!("SKIP: fsck.erofs is not installed (package erofs-utils)"),
    }
}

/// Mounts an image; `None`, and a printed reason, where that is not possible.
struct Mount(tempfile::TempDir);

impl Mount {
    fn of(path: &Utf8Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: mounting an image needs root");
            return None;
        }
        let point = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(path)
            .arg(point.path())
            .output()
            .unwrap();
        if !status.status.success() {
            assert!(
                !std::fs::read_to_string("/proc/filesystems").unwrap().contains("erofs"),
                "{}",
                String::from_utf8_lossy(&status.stderr)
            );
            println!("SKIP: this kernel has no EROFS");
            return None;
        }
        Some(Self(point))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// An image that is read and written again is the same, byte for byte.
fn again(path: &Utf8Path, written: &Written) {
    let mut copy = Image::new();
    read(path, &mut copy.tree, &mut copy.spool, &Cancel::default()).unwrap();
    assert_eq!(&copy.write().2, written);
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).unwrap() + 1).collect()
}

#[test]
fn every_kind_of_entry_comes_back_as_it_went_in() {
    let mut image = Image::new();
    let sizes =
        [0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 8193, 65_535, 65_536, 65_537, 1_000_003];
    for size in sizes {
        image.file(format!("files/{size}").as_bytes(), &content(size));
    }
    let names: [&[u8]; 4] = [b"with space", b"with\nnewline", b"not utf-8 \xff\xfe", &[b'n'; 255]];
    for name in names {
        image.file(&[b"names/", name].concat(), name);
    }
    image.put(b"link", Kind::Symlink((*b"/absolute/../target").into()));
    image.put(b"long link", Kind::Symlink(vec![b'x'; 4000].into()));
    image.put(b"null", Kind::CharacterDevice(1, 3));
    image.put(b"disk", Kind::BlockDevice(259, 70_000));
    image.put(b"fifo", Kind::Fifo);
    image.tree.hard_link(b"again", b"files/4097").unwrap();
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs = vec![
        Xattr { name: b"user.b".to_vec(), value: b"value".to_vec() },
        Xattr { name: b"security.capability".to_vec(), value: capability.clone() },
        Xattr { name: b"user.large".to_vec(), value: content(4000) },
    ];
    let data = image.spool.store(&content(5000)).unwrap();
    image.put_with(b"attributes", Attributes { xattrs, ..Attributes::root(0o4755) }, Kind::File(data));
    let (_directory, path, written) = image.write();
    again(&path, &written);
    assert_eq!(microvm_durable::files::sha256_file(&path).unwrap(), (written.sha256, written.size));
    fsck(&path);
    let Some(mount) = Mount::of(&path) else { return };
    let at = |name: &[u8]| mount.path().join(Path::new(std::ffi::OsStr::from_bytes(name)));
    for size in sizes {
        assert!(std::fs::read(at(format!("files/{size}").as_bytes())).unwrap() == content(size), "{size}");
    }
    for name in names {
        assert_eq!(std::fs::read(at(&[b"names/", name].concat())).unwrap(), name);
    }
    assert_eq!(std::fs::read_link(at(b"link")).unwrap().as_os_str().as_bytes(), b"/absolute/../target");
    assert_eq!(std::fs::read_link(at(b"long link")).unwrap().as_os_str().len(), 4000);
    let metadata = std::fs::symlink_metadata(at(b"disk")).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!((rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())), (259, 70_000));
    assert!(std::fs::symlink_metadata(at(b"null")).unwrap().file_type().is_char_device());
    assert!(std::fs::symlink_metadata(at(b"fifo")).unwrap().file_type().is_fifo());
    let file = std::fs::metadata(at(b"again")).unwrap();
    assert_eq!(
        (file.nlink(), file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.mtime_nsec()),
        (2, 70_000, 3, 0o640, 1_700_000_000, 5)
    );
    assert_eq!(file.ino(), std::fs::metadata(at(b"files/4097")).unwrap().ino());
    let mut value = [0; 8192];
    let length = rustix::fs::lgetxattr(at(b"attributes"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..length], capability);
    let length = rustix::fs::lgetxattr(at(b"attributes"), "user.large", &mut value[..]).unwrap();
    assert!(value[..length] == content(4000));
    assert!(std::fs::read(at(b"attributes")).unwrap() == content(5000));
}

#[test]
fn large_directories_and_many_files_are_found_by_name() {
    let mut image = Image::new();
    for number in 0..10_000 {
        image.file(format!("many/file number {number}").as_bytes(), format!("content {number}").as_bytes());
    }
    let (_directory, path, _) = image.write();
    fsck(&path);
    let Some(mount) = Mount::of(&path) else { return };
    assert_eq!(std::fs::read_dir(mount.path().join("many")).unwrap().count(), 10_000);
    for number in (0..10_000).step_by(37) {
        let read = std::fs::read_to_string(mount.path().join(format!("many/file number {number}"))).unwrap();
        assert_eq!(read, format!("content {number}"));
    }
}

#[test]
fn holes_take_no_room() {
    let mut image = Image::new();
    let mut file = image.spool.begin();
    file.write(b"begin").unwrap();
    file.zeros((4 << 30) - 10).unwrap();
    file.write(b"end!!").unwrap();
    let data = file.finish().unwrap();
    assert_eq!(data.size, 4 << 30);
    image.put(b"sparse", Kind::File(data));
    let mut file = image.spool.begin();
    file.zeros(1 << 20).unwrap();
    let data = file.finish().unwrap();
    image.put(b"zeros", Kind::File(data));
    let (_directory, path, written) = image.write();
    again(&path, &written);
    assert!(written.size < 1 << 20, "{}", written.size);
    let Some(mount) = Mount::of(&path) else { return };
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(mount.path().join("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4 << 30);
    let mut part = [1; 9];
    file.read_exact_at(&mut part, 0).unwrap();
    assert_eq!(&part, b"begin\0\0\0\0");
    file.read_exact_at(&mut part, (4 << 30) - 9).unwrap();
    assert_eq!(&part, b"\0\0\0\0end!!");
    file.read_exact_at(&mut part, 2 << 30).unwrap();
    assert_eq!(part, [0; 9]);
    assert!(std::fs::read(mount.path().join("zeros")).unwrap() == vec![0; 1 << 20]);
}

#[test]
fn equal_trees_give_equal_bytes_in_any_order() {
    let files: BTreeMap<u32, Vec<u8>> =
        (0..50).map(|number| (number, content(number as usize * 311))).collect();
    let make = |order: &mut dyn Iterator<Item = (&u32, &Vec<u8>)>| {
        let mut image = Image::new();
        for (number, content) in order {
            image.file(format!("d{}/{number}", number % 7).as_bytes(), content);
        }
        image.write().2
    };
    assert_eq!(make(&mut files.iter()), make(&mut files.iter().rev()));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn any_tree_passes_fsck(files in proptest::collection::btree_map(proptest::collection::vec(1u8..=255, 1..20), 0usize..20_000, 0..40)) {
        let mut image = Image::new();
        for (name, size) in &files {
            let name: Vec<u8> = name.iter().map(|byte| if *byte == b'/' || *byte == b'.' { b'_' } else { *byte }).collect();
            image.file(&name, &content(*size));
        }
        let (_directory, path, _) = image.write();
        fsck(&path);
    }
}
