//! Sources of an image (folders, tars, the root of a guest), compared entry by entry with the image.
//!
//! Needs root, loop devices and a kernel with EROFS; says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8Path;
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_driver_host::SystemClock;
use microvm_driver_images::{AgentSource, Images, ImagesConfig};
use microvm_ports::guest::{GuestEndpoint, Identity};
use microvm_ports::storage::{ImageConfig, ImageSource};
use microvm_ports::{Guest, GuestConnector as _, GuestError, ImageStore as _, Progress, PulledArchive};
use rustix::fs::{FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, makedev, mknodat};
use sha2::{Digest as _, Sha256};

/// `user::rwx,user:1234:r--,group::r-x,mask::r-x,other::---` as the kernel takes it.
const ACL: [u8; 44] = *b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// `cap_net_raw=ep`.
const CAPABILITY: [u8; 20] = *b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const BEFORE_1970: i64 = -86_400;

fn attribute(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn modified(path: &Path, seconds: i64, nanoseconds: u32) {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    let file = fs::File::open(path).unwrap();
    file.set_modified(time + Duration::from_nanos(nanoseconds.into())).unwrap();
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// One of everything that a file system can hold.
fn furnish(root: &Path) {
    let path = |name: &str| root.join(name);
    let special = |name: &str, kind, device| {
        mknodat(rustix::fs::CWD, path(name), kind, Mode::from_raw_mode(0o620), device).unwrap();
    };
    for name in ["empty", "tmp", "group", "many/deep", "mnt", "etc", "proc"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    let mode = |name: &str, mode| fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    let owner = |name: &str, uid, gid| std::os::unix::fs::lchown(path(name), Some(uid), Some(gid)).unwrap();
    fs::write(path("plain"), "plain").unwrap();
    fs::write(path("nothing"), "").unwrap();
    for (name, length) in [("block", 4096), ("long", 70_001), ("longer", 3 << 20)] {
        fs::write(path(name), noise(length)).unwrap();
    }
    for (name, bits) in [("suid", 0o4755), ("sgid", 0o2711), ("unreadable", 0), ("plain", 0o640)] {
        fs::write(path(name), name).unwrap();
        owner(name, 1000, 100);
        mode(name, bits);
    }
    mode("tmp", 0o1777);
    mode("group", 0o2775);
    for (name, uid, gid) in [("large", 70_000, 65_536), ("largest", u32::MAX - 1, 3_000_000_000)] {
        fs::write(path(name), name).unwrap();
        owner(name, uid, gid);
    }
    fs::hard_link(path("plain"), path("many/second name")).unwrap();
    fs::hard_link(path("longer"), path("many/deep/longer too")).unwrap();
    std::os::unix::fs::symlink("plain", path("link")).unwrap();
    owner("link", 12, 34);
    fs::hard_link(path("link"), path("second link")).unwrap();
    std::os::unix::fs::symlink("/no/where", path("dangling")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(1500), path("far")).unwrap();
    special("pipe", FileType::Fifo, 0);
    fs::hard_link(path("pipe"), path("pipe again")).unwrap();
    special("character", FileType::CharacterDevice, makedev(1, 3));
    special("disk", FileType::BlockDevice, makedev(259, 70_000));
    for name in [&b"new\nline"[..], b"not \xff UTF-8", b" blanks ", b"=%\\", &[b'n'; 255]] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let deep = path(&"directory/".repeat(30));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "leaf").unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    for offset in [0, 100 << 20, (200 << 20) + 4097] {
        sparse.write_all_at(b"data between holes", offset).unwrap();
    }
    fs::File::create(path("hole")).unwrap().set_len(5 << 20).unwrap();
    attribute(&path("suid"), "security.capability", &CAPABILITY);
    attribute(&path("plain"), "user.comment", b"a value\0with\nanything \xff");
    attribute(&path("plain"), "user.empty", b"");
    attribute(&path("group"), "user.of-a-directory", &noise(3000));
    attribute(&path("group"), "system.posix_acl_access", &ACL);
    attribute(&path("group"), "system.posix_acl_default", &ACL);
    attribute(&path("large"), "system.posix_acl_access", &ACL);
    attribute(root, "user.root", b"of the root");
    owner(".", 5, 6);
    modified(&path("plain"), 1_000_000_000, 123_456_789);
    modified(&path("nothing"), BEFORE_1970, 0);
    modified(&path("suid"), BEFORE_1970, 250_000_000);
    modified(&path("large"), 5_000_000_000, 1);
    modified(&path("empty"), 1_111_111_111, 999_999_999);
    modified(root, 1_222_222_222, 5);
}

/// Everything about one entry but its name.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    device: u64,
    links: u64,
    /// First name of the same file.
    same_as: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    size: u64,
    /// Hash of a file, target of a link.
    content: Vec<u8>,
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 65_536];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 65_536];
            let length = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

fn hash(path: &Path) -> Vec<u8> {
    let (mut file, mut hasher, mut buffer) = (fs::File::open(path).unwrap(), Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().to_vec(),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn listing(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let kind = metadata.file_type();
        let (mut size, mut content) = (0, Vec::new());
        if kind.is_dir() {
            let mut below: Vec<PathBuf> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort_by(|a, b| b.cmp(a));
            waiting.append(&mut below);
        } else if kind.is_file() {
            size = metadata.len();
            content = hash(&path);
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        }
        let same_as = (!kind.is_dir() && metadata.nlink() > 1)
            .then(|| first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.clone()).clone());
        let entry = Entry {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            device: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            // File systems count those of directories in their own ways.
            links: if kind.is_dir() { 0 } else { metadata.nlink() },
            same_as,
            attributes: attributes(&path),
            size,
            content,
        };
        found.insert(name, entry);
    }
    found
}

fn expect_same(what: &str, source: &BTreeMap<PathBuf, Entry>, image: &BTreeMap<PathBuf, Entry>) {
    for (name, entry) in source {
        assert_eq!(image.get(name), Some(entry), "{what}: {}", name.display());
    }
    assert_eq!(image.len(), source.len(), "{what} has more: {:?}", image.keys());
}

/// A file system that is unmounted in the end.
struct Mount(PathBuf);

impl Mount {
    fn of(arguments: &[&OsStr], at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let output = Command::new("mount").args(arguments).arg(at).output().unwrap();
        if !output.status.success() {
            eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

struct Scene {
    directory: tempfile::TempDir,
    storage: Images,
}

impl Scene {
    /// `None`, with the reason on standard error, where this host cannot do it.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: devices, owners and mounts need root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(directory.path()).unwrap();
        let config = ImagesConfig::new(path.join("store"), AgentSource::Bytes(Arc::from(&b"agent"[..])));
        let storage = Images::open(config, Arc::new(SystemClock)).unwrap();
        Some(Self { directory, storage })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn add(&self, name: &str, path: &Path) {
        let source = ImageSource::Path { path: path.to_owned().try_into().unwrap() };
        let config = ImageConfig::default();
        self.storage.add_image(name, &source, &[], &config, Progress::ignored()).await.unwrap();
    }

    /// Entries that a kernel sees in an image; `None` where it cannot mount it.
    async fn listing(&self, name: &str) -> Option<BTreeMap<PathBuf, Entry>> {
        let image = self.storage.image(name).await.unwrap().path;
        let options = ["-t", "erofs", "-o", "loop,ro"].map(OsStr::new);
        let mount = Mount::of(&[&options[..], &[image.as_os_str()]].concat(), &self.path("mounted"))?;
        Some(listing(&mount.0))
    }
}

#[tokio::test]
async fn folders_and_tars_become_images_of_exactly_what_is_in_them() {
    let Some(scene) = Scene::new() else { return };
    let tree = scene.path("tree");
    fs::create_dir(&tree).unwrap();
    furnish(&tree);
    scene.add("folder", &tree).await;
    let Some(image) = scene.listing("folder").await else { return };
    let mut source = listing(&tree);
    // The folder itself is the host's: its owner and mode are no part of an image.
    let root = source.get_mut(Path::new("")).unwrap();
    (root.owner, root.mode) = ((0, 0), 0o040_755);
    expect_same("the folder", &source, &image);
    // GNU tar makes two pipes of one with two names.
    fs::remove_file(tree.join("pipe again")).unwrap();
    modified(&tree, 1_222_222_222, 5);
    let tar = scene.path("tar");
    let status = Command::new("tar")
        .args(["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "-cf"])
        .args([tar.as_os_str(), OsStr::new("-C"), tree.as_os_str(), OsStr::new(".")])
        .status();
    assert!(status.unwrap().success());
    scene.add("tar", &tar).await;
    expect_same("the tar", &listing(&tree), &scene.listing("tar").await.unwrap());
}

async fn connect(endpoint: &GuestEndpoint) -> Arc<dyn Guest> {
    let connector = SocketGuestConnector::new(GuestConfig::default());
    let end = SystemTime::now() + Duration::from_secs(60);
    loop {
        match connector.connect(endpoint, 1, &Identity::default(), Duration::from_secs(60)).await {
            Ok(guest) => return guest,
            // The only sign that a program listens is that it does.
            Err(GuestError::Unreachable(_)) if SystemTime::now() < end => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("no connection: {error}"),
        }
    }
}

#[tokio::test]
async fn the_root_of_a_guest_becomes_an_image_of_exactly_what_is_on_it() {
    let Some(scene) = Scene::new() else { return };
    let Some(agent) = std::env::var_os("MICROVM_TEST_AGENT") else {
        eprintln!("SKIPPED: MICROVM_TEST_AGENT does not name the agent");
        return;
    };
    let tree = scene.path("tree");
    fs::create_dir(&tree).unwrap();
    furnish(&tree);
    fs::write(tree.join("mnt/below"), "below what is mounted").unwrap();
    fs::write(tree.join("etc/hosts"), "10.0.0.1 db\n").unwrap();
    let source = listing(&tree);
    // What the agent adds, and what is mounted, is no part of it; nor is a socket.
    let hosts = tree.join("etc/hosts");
    let before = fs::metadata(&hosts).unwrap().modified().unwrap();
    fs::write(&hosts, "10.0.0.1 db\n127.0.1.1\tname\t# this guest\n").unwrap();
    fs::File::open(&hosts).unwrap().set_modified(before).unwrap();
    let directory = fs::metadata(tree.join("empty")).unwrap().modified().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("empty/socket")).unwrap();
    fs::File::open(tree.join("empty")).unwrap().set_modified(directory).unwrap();
    let tmpfs = ["-t", "tmpfs", "none"].map(OsStr::new);
    let Some(_over) = Mount::of(&tmpfs, &tree.join("mnt")) else { return };
    fs::write(tree.join("mnt/above"), "mounted").unwrap();

    let socket = scene.path("agent.sock");
    let mut child = tokio::process::Command::new(agent)
        .arg("--serve-socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let guest = connect(&GuestEndpoint::UnixSocket(socket.try_into().unwrap())).await;
    let PulledArchive { data, left_out } = guest.pull_root(tree.as_os_str().as_bytes()).await.unwrap();
    let config = ImageConfig::default();
    scene
        .storage
        .add_image_from_stream("guest", "a guest", &config, data, Progress::ignored())
        .await
        .unwrap();
    let left_out = left_out.await.unwrap();
    let named: Vec<_> = left_out.entries.iter().map(|entry| (&*entry.path, &*entry.reason)).collect();
    assert_eq!((left_out.count, &named[..]), (1, &[("/empty/socket", "it is a socket")][..]));
    child.kill().await.unwrap();
    let Some(image) = scene.listing("guest").await else { return };
    expect_same("the guest", &source, &image);
}
