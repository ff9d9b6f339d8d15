//! Images as archives: taken in again they are the same images, whoever reads them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use common::{Home, entry, file};
use futures::StreamExt as _;
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource};
use microvm_ports::{ImageStore as _, Progress, StorageError};
use tar::{Archive, Builder, EntryType, Header};

/// `user::rwx,user:1234:r--,group::r-x,mask::r-x,other::---` as the kernel takes it.
const ACL: [u8; 44] = *b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// `cap_net_raw=ep`.
const CAPABILITY: [u8; 20] = *b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Appends an entry with pax records.
fn with_records(
    tar: &mut Builder<Vec<u8>>,
    kind: EntryType,
    mode: u32,
    name: &str,
    content: &[u8],
    records: &[(&str, &[u8])],
) {
    tar.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_234_567_890);
    header.set_size(content.len() as u64);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
    }
    tar.append_data(&mut header, name, content).unwrap();
}

/// A root with one of everything.
fn everything() -> Vec<u8> {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let mut tar = Builder::new(Vec::new());
    with_records(&mut tar, Directory, 0o751, ".", b"", &[("SCHILY.xattr.user.root", b"r")]);
    with_records(&mut tar, Directory, 0o1777, "tmp", b"", &[("SCHILY.xattr.system.posix_acl_default", &ACL)]);
    let owners: [(&str, &[u8]); 3] =
        [("uid", b"70000000"), ("gid", b"4294967294"), ("SCHILY.xattr.security.capability", &CAPABILITY)];
    with_records(&mut tar, Regular, 0o4755, "bin/ping", b"ping", &owners);
    with_records(&mut tar, Regular, 0o640, "acl", b"x", &[("SCHILY.xattr.system.posix_acl_access", &ACL)]);
    with_records(&mut tar, Regular, 0o600, "old", b"old", &[("mtime", b"-86399.999999995")]);
    with_records(&mut tar, Regular, 0o600, "late", b"late", &[("mtime", b"99999999999.5")]);
    with_records(&mut tar, Regular, 0o600, "values", b"", &[("SCHILY.xattr.user.lines", b"a\nb=\0c")]);
    with_records(&mut tar, Char, 0o666, "dev/char", b"", &[]);
    with_records(&mut tar, Block, 0o660, "dev/block", b"", &[]);
    with_records(&mut tar, Fifo, 0o600, "dev/fifo", b"", &[]);
    file(&mut tar, "first", b"several names");
    entry(&mut tar, Link, b"second", b"first", b"");
    entry(&mut tar, Symlink, b"link", b"/no/where", b"");
    entry(&mut tar, Link, b"link too", b"link", b"");
    entry(&mut tar, Regular, b"not \xff utf-8\nline", b"", b"odd");
    let long = format!("long/{}/{}", "d".repeat(200), "n".repeat(255));
    with_records(&mut tar, Regular, 0o644, &long, b"long", &[]);
    with_records(&mut tar, Link, 0o644, "short", b"", &[("linkpath", long.as_bytes())]);
    with_records(&mut tar, Symlink, 0o777, "far", b"", &[("linkpath", "t/".repeat(300).as_bytes())]);
    file(&mut tar, "empty", b"");
    // Holes before, between and behind data, which does not end with a chunk; and one that is too small for a map.
    for (name, size, places) in [
        ("sparse", 5 << 20, &[1 << 20, (3 << 20) + 77][..]),
        ("ends", (1 << 20) + 5, &[1 << 20]),
        ("hole", 1 << 20, &[]),
        ("small", 70_000, &[69_990]),
    ] {
        let mut content = vec![0; size];
        places.iter().for_each(|place: &usize| content[*place..place + 5].copy_from_slice(b"bytes"));
        file(&mut tar, name, &content);
    }
    tar.into_inner().unwrap()
}

fn config() -> ImageConfig {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    ImageConfig {
        environment: map("PATH", "/bin=/sbin"),
        user: "nobody:daemon".to_owned(),
        working_directory: "/srv".to_owned(),
        entrypoint: words("/bin/tool -v"),
        command: words("a b"),
        labels: map("org.opencontainers.image.title", "t\u{fc}r \"x\""),
    }
}

async fn add(home: &Home, name: &str, tar: &[u8]) -> ImageInfo {
    let path = home.path("source");
    std::fs::write(&path, tar).unwrap();
    let source = ImageSource::Path { path };
    home.storage.add_image(name, &source, &[], &config(), Progress::ignored()).await.unwrap()
}

async fn exported(home: &Home, reference: &str) -> Vec<u8> {
    let mut stream = home.storage.export_image(reference).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.unwrap());
    }
    bytes
}

/// An archive without some of its entries.
fn without(archive: &[u8], names: &[&str]) -> Vec<u8> {
    let mut kept = Builder::new(Vec::new());
    for found in Archive::new(archive).entries().unwrap() {
        let mut found = found.unwrap();
        if names.contains(&found.path().unwrap().to_str().unwrap()) {
            continue;
        }
        let header = found.header().clone();
        let mut content = Vec::new();
        found.read_to_end(&mut content).unwrap();
        kept.append(&header, &content[..]).unwrap();
    }
    kept.into_inner().unwrap()
}

#[tokio::test]
async fn an_exported_image_comes_back_as_the_same() {
    let home = Home::new();
    let info = add(&home, "tool:1.2", &everything()).await;
    assert_eq!(info.config, config());
    let archive = exported(&home, "tool:1.2").await;
    // As OCI's tools read it, and as docker does.
    let forms = [
        archive.clone(),
        without(&archive, &["oci-layout", "index.json"]),
        without(&archive, &["manifest.json"]),
    ];
    for (number, form) in forms.iter().enumerate() {
        let again = home.add_bytes(&format!("again-{number}"), form).await.unwrap();
        // Over all bytes of the file system, and the configuration.
        assert_eq!(again.digest, info.digest, "form {number}");
        assert_eq!(again.config, config());
    }
    // The tag is that of the image.
    home.add_path("tagged", &home.path("archive:1.2")).await.unwrap();
    assert_eq!(exported(&home, "again-0").await.len(), archive.len());
    assert_eq!(exported(&home, "tool:1.2").await, archive, "equal images give different archives");
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn an_image_exported_by_its_digest_has_no_tag() {
    let home = Home::new();
    let info = add(&home, "tool", &everything()).await;
    let archive = exported(&home, &info.digest).await;
    let text = String::from_utf8_lossy(&archive[..8 << 10]).into_owned();
    assert!(text.contains(r#""RepoTags":[]"#) && !text.contains("ref.name"), "{text}");
    assert_eq!(home.add_bytes("again", &archive).await.unwrap().digest, info.digest);
}

#[tokio::test]
async fn an_image_that_no_layer_can_hold_or_that_is_not_there_is_refused() {
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "etc/.wh.name", b"");
    home.add_bytes("odd", &tar.into_inner().unwrap()).await.unwrap();
    match home.storage.export_image("odd").await.map(drop) {
        Err(StorageError::BadInput { what, detail }) => {
            assert!(what.contains("odd") && detail.contains("etc/.wh.name"), "{what}: {detail}");
        }
        other => panic!("{other:?}"),
    }
    let missing = home.storage.export_image("none").await.map(drop);
    assert!(matches!(missing, Err(StorageError::UnknownImage(_))), "{missing:?}");
    assert!(home.work().is_empty());
}

async fn until_nothing_is_at_work(home: &Home) {
    // The work ends on its own thread a moment later; its directory going is the event.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !home.work().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", home.work());
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_that_nobody_takes_end_and_keep_none_from_theirs() {
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "large", &vec![7; 8 << 20]);
    add(&home, "large", &tar.into_inner().unwrap()).await;
    // More than are written at once.
    for _ in 0..6 {
        let mut stream = home.storage.export_image("large").await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        // Not begun at all.
        drop(home.storage.export_image("large").await.unwrap());
    }
    until_nothing_is_at_work(&home).await;
    // An image may go while it is written.
    let mut stream = home.storage.export_image("large").await.unwrap();
    let mut bytes = stream.next().await.unwrap().unwrap().len();
    home.storage.remove_image("large", &[]).await.unwrap();
    while let Some(part) = stream.next().await {
        bytes += part.unwrap().len();
    }
    assert!(bytes > 8 << 20);
    drop(stream);
    until_nothing_is_at_work(&home).await;
}

fn as_stream(tar: Vec<u8>) -> microvm_ports::guest::ByteStream {
    let parts: Vec<_> = tar.chunks(1000).map(|part| Ok(bytes::Bytes::copy_from_slice(part))).collect();
    futures::stream::iter(parts).boxed()
}

/// An image, and a layer over it with a change of every kind.
async fn changed(home: &Home) -> (String, Vec<u8>) {
    use EntryType::{Directory, Link, Regular, Symlink};
    let mut tar = Builder::new(Vec::new());
    for directory in ["etc/", "same/", "same/deep/", "gone/", "gone/deep/", "opaque/", "a/", "a/b/"] {
        entry(&mut tar, Directory, directory.as_bytes(), b"", b"");
    }
    for name in [
        "etc/kept",
        "etc/content",
        "etc/gone",
        "same/deep/x",
        "gone/deep/x",
        "opaque/old",
        "opaque/kept",
        "a/b/c",
        "a-z",
    ] {
        file(&mut tar, name, name.as_bytes());
    }
    entry(&mut tar, Symlink, b"link", b"etc", b"");
    let info = home.add_bytes("base", &tar.into_inner().unwrap()).await.unwrap();
    let mut layer = Builder::new(Vec::new());
    // Directories on the way come with every change; one that is the same is none.
    for directory in ["etc/", "same/", "same/deep/", "opaque/", "a/", "a/b/"] {
        entry(&mut layer, Directory, directory.as_bytes(), b"", b"");
    }
    file(&mut layer, "etc/content", b"other");
    file(&mut layer, "etc/.wh.gone", b"");
    file(&mut layer, ".wh.gone", b"");
    file(&mut layer, "opaque/.wh..wh..opq", b"");
    file(&mut layer, "opaque/kept", b"opaque/kept");
    file(&mut layer, "new/deep/file", &[1; 3000]);
    file(&mut layer, "new/hole", &vec![0; 2 << 20]);
    entry(&mut layer, Regular, b"etc/odd \xff\n", b"", b"");
    entry(&mut layer, Link, b"a/b/hard", b"a-z", b"");
    entry(&mut layer, Directory, b"link/", b"", b"");
    (info.digest, layer.into_inner().unwrap())
}

#[tokio::test]
async fn changes_are_told_as_docker_tells_them() {
    let home = Home::new();
    let (base, layer) = changed(&home).await;
    let changes = home.storage.layer_changes(&base, as_stream(layer.clone())).await.unwrap();
    let lines: Vec<String> =
        changes.iter().map(|changed| format!("{:?} {}", changed.change, changed.path)).collect();
    assert_eq!(
        lines,
        [
            "Changed /a",
            "Changed /a/b",
            "Added /a/b/hard",
            "Changed /etc",
            "Changed /etc/content",
            "Deleted /etc/gone",
            "Added /etc/odd \u{fffd}\n",
            "Deleted /gone",
            "Changed /link",
            "Added /new",
            "Added /new/deep",
            "Added /new/deep/file",
            "Added /new/hole",
            "Changed /opaque",
            "Changed /opaque/kept",
            "Deleted /opaque/old",
        ]
    );
    let odd = changes.iter().find(|changed| changed.path_bytes.is_some()).unwrap();
    assert_eq!(odd.bytes(), b"/etc/odd \xff\n");
    let nothing = Builder::new(Vec::new()).into_inner().unwrap();
    assert_eq!(home.storage.layer_changes(&base, as_stream(nothing)).await.unwrap(), []);
    // A layer that is cut off changes nothing that is told.
    let cut = home.storage.layer_changes(&base, as_stream(layer[..2000].to_vec())).await;
    assert!(matches!(cut, Err(StorageError::BadInput { .. })), "{cut:?}");
    let missing = home.storage.layer_changes("none", as_stream(layer)).await;
    assert!(matches!(missing, Err(StorageError::UnknownImage(_))), "{missing:?}");
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn files_under_a_layer_are_those_of_an_image_made_of_both() {
    let home = Home::new();
    let (base, layer) = changed(&home).await;
    let nothing = ImageConfig::default();
    let (storage, quiet) = (&home.storage, Progress::ignored);
    let image =
        storage.add_layer("both", &base, "", &nothing, as_stream(layer.clone()), quiet()).await.unwrap();
    let mut stream = storage.export_files("the VM `dev`", &base, as_stream(layer.clone())).await.unwrap();
    let mut tar = Vec::new();
    while let Some(part) = stream.next().await {
        tar.extend_from_slice(&part.unwrap());
    }
    assert_eq!(home.add_bytes("again", &tar).await.unwrap().digest, image.digest);
    assert!(tar.len() < 1 << 20, "holes take {} bytes", tar.len());
    let cut = storage.export_files("the VM `dev`", &base, as_stream(layer[..2000].to_vec())).await.map(drop);
    assert!(matches!(&cut, Err(StorageError::BadInput { what, .. }) if what == "the VM `dev`"), "{cut:?}");
    drop(stream);
    until_nothing_is_at_work(&home).await;
}

#[tokio::test]
async fn an_image_that_changes_while_it_is_exported_gives_no_whole_archive() {
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "large", &[7; 8 << 20]);
    let info = add(&home, "x", &tar.into_inner().unwrap()).await;
    let path = home.storage.image(&info.digest).await.unwrap().path;
    let mut stream = home.storage.export_image("x").await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(!first.is_empty());
    // What is not written yet waits for its reader. Other bytes, of the same length.
    let mut content = std::fs::read(&path).unwrap();
    let end = content.windows(4_096).rposition(|part| part == [7; 4_096]).unwrap();
    content[end..end + 4_096].fill(8);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let changed = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&changed, &content[end..end + 4_096], end as u64).unwrap();
    let parts: Vec<_> = stream.collect().await;
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(Result::is_ok));
    let error = last.as_ref().unwrap_err().to_string();
    assert!(error.contains("the image `x` is damaged") && error.contains("changed while"), "{error}");
}
