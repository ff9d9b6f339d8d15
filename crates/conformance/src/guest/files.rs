//! Checks of files in a guest.

use bytes::Bytes;
use futures::StreamExt;
use microvm_ports::archive::Holes;
use microvm_ports::content::{Content, expanded, of_bytes};
use microvm_ports::guest::GuestError;
use microvm_types::ErrorKind;
use microvm_types::files::{FileKind, FileList, FileOwner, FileStat, WriteOptions};

use super::{Scene, gather, noise, refusal, shell, stream_of};
use crate::{Must, Suite};

pub(super) async fn run(suite: &mut Suite, scene: &Scene) {
    suite.check("a file comes back as it was written", round_trip(scene)).await;
    suite.check("parts of a file can be read", parts(scene)).await;
    suite.check("a replaced file keeps its mode, and nothing is left beside it", replace(scene)).await;
    suite.check("a transfer that breaks off leaves the old file", broken_off(scene)).await;
    suite.check("odd names are names", odd_names(scene)).await;
    suite.check("directories are made, listed, renamed and removed", directories(scene)).await;
    suite.check("what is not there is NotFound", not_found(scene)).await;
    suite.check("holes come back as zeros", sparse(scene)).await;
    suite.check("holes stay holes, both ways", holes(scene)).await;
    suite.check("changes are reported to a watch", watch(scene)).await;
    suite.check("commands and file operations see the same files", same_files(scene)).await;
}

pub(super) async fn write(scene: &Scene, path: &[u8], data: &[u8], options: &WriteOptions) {
    let pieces = data.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let bytes =
        scene.guest.write_file(path, options, of_bytes(stream_of(pieces))).await.must("writing a file");
    assert_eq!(bytes, data.len() as u64);
}

pub(super) async fn read(scene: &Scene, path: &[u8]) -> (FileStat, Vec<u8>) {
    let (stat, stream) = scene.guest.read_file(path, 0, None).await.must("reading a file");
    (stat, gather(expanded(stream)).await)
}

async fn round_trip(scene: &Scene) {
    let directory = scene.directory().await;
    for size in [0, 1, 65_536, 3_000_001] {
        let path = format!("{directory}/{size}");
        let data = noise(size);
        write(scene, path.as_bytes(), &data, &WriteOptions::default()).await;
        let (stat, found) = read(scene, path.as_bytes()).await;
        assert!(found == data, "{size} bytes came back differently");
        assert_eq!((stat.kind, stat.size, stat.mode, stat.uid), (FileKind::File, size as u64, 0o644, 0));
        assert_eq!(stat.path, path);
        assert!(stat.modified_ms > 0, "{stat:?}");
        let data = [Ok(Bytes::from(data))].into();
        let again = format!("{path}.again");
        let options = WriteOptions::default();
        scene
            .guest
            .write_file(again.as_bytes(), &options, of_bytes(stream_of(data)))
            .await
            .must("writing again");
        let (one, other) = (path.as_bytes(), again.as_bytes());
        let hash = scene.guest.hash_file(one).await.must("hashing");
        assert_eq!(scene.guest.hash_file(other).await.must("hashing again"), hash);
    }
    // The first example of FIPS 180-2, appendix B.
    let path = format!("{directory}/abc");
    write(scene, path.as_bytes(), b"abc", &WriteOptions::default()).await;
    let hash = scene.guest.hash_file(path.as_bytes()).await.must("hashing");
    assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

async fn parts(scene: &Scene) {
    let path = format!("{}/f", scene.directory().await);
    write(scene, path.as_bytes(), b"0123456789", &WriteOptions::default()).await;
    for (offset, length, wanted) in [
        (0, Some(3), "012"),
        (7, None, "789"),
        (8, Some(50), "89"),
        (10, None, ""),
        (99, None, ""),
        (2, Some(0), ""),
    ] {
        let (_, stream) = scene.guest.read_file(path.as_bytes(), offset, length).await.must("reading a part");
        assert_eq!(gather(expanded(stream)).await, wanted.as_bytes(), "from {offset}, {length:?} bytes");
    }
}

async fn replace(scene: &Scene) {
    let directory = scene.directory().await;
    let path = format!("{directory}/deep/er/f");
    let options = WriteOptions {
        mode: Some(0o750),
        owner: Some(FileOwner::from_text("12:34")),
        create_parents: true,
        modified: None,
    };
    write(scene, path.as_bytes(), b"old", &options).await;
    write(scene, path.as_bytes(), b"new content", &WriteOptions::default()).await;
    let (stat, data) = read(scene, path.as_bytes()).await;
    assert_eq!((stat.mode, stat.uid, stat.gid, data.as_slice()), (0o750, 12, 34, b"new content".as_slice()));
    let beside = scene.guest.list(format!("{directory}/deep/er").as_bytes(), 1).await.must("listing");
    assert_eq!(beside.entries.len(), 1, "{beside:?}");
}

async fn broken_off(scene: &Scene) {
    let directory = scene.directory().await;
    let path = format!("{directory}/f");
    write(scene, path.as_bytes(), b"old", &WriteOptions::default()).await;
    let pieces =
        vec![Ok(Bytes::from(noise(200_000))), Err(GuestError::Source("the disk was pulled out".to_owned()))];
    let outcome =
        scene.guest.write_file(path.as_bytes(), &WriteOptions::default(), of_bytes(stream_of(pieces))).await;
    let error = outcome.must_fail("writing from a broken source");
    assert!(matches!(error, GuestError::Source(_)), "wrong error: {error}");
    assert_eq!(read(scene, path.as_bytes()).await.1, b"old");
    let beside = scene.guest.list(directory.as_bytes(), 1).await.must("listing");
    assert_eq!(beside.entries.len(), 1, "{beside:?}");
}

async fn odd_names(scene: &Scene) {
    let directory = scene.directory().await;
    let names: [&[u8]; 6] =
        [b"with space", b"new\nline", b"\xff\xfe not utf-8", "grüße".as_bytes(), b"-rf", b"'\"$HOME\\"];
    for name in names {
        let path = [directory.as_bytes(), b"/", name].concat();
        write(scene, &path, name, &WriteOptions::default()).await;
        assert_eq!(read(scene, &path).await.1, name);
        let stat = scene.guest.stat(&path).await.must("asking about it");
        let exact = stat.path_bytes.clone().unwrap_or_else(|| stat.path.clone().into_bytes());
        assert_eq!(exact, path, "{stat:?}");
    }
    let all = scene.guest.list(directory.as_bytes(), 1).await.must("listing");
    assert_eq!(all.entries.len(), names.len(), "{all:?}");
}

async fn directories(scene: &Scene) {
    let guest = &scene.guest;
    let top = scene.directory().await;
    let at = |rest: &str| format!("{top}/{rest}").into_bytes();
    let error = guest
        .make_directory(&at("a/b/c"), 0o700, false, None)
        .await
        .must_fail("making one without its parents");
    assert_eq!(refusal(&error), ErrorKind::NotFound);
    guest.make_directory(&at("a/b/c"), 0o700, true, None).await.must("making one with its parents");
    guest.make_directory(&at("a/b/c"), 0o700, true, None).await.must("making it again with parents");
    guest.make_directory(&at("a"), 0o700, false, None).await.must_fail("making what is there");
    let stat = guest.stat(&at("a/b/c")).await.must("asking about it");
    assert_eq!((stat.kind, stat.mode), (FileKind::Directory, 0o700));
    write(scene, &at("a/f"), b"x", &WriteOptions::default()).await;
    let paths = |list: FileList| {
        assert!(!list.truncated && list.unreadable == 0, "a short list is not whole");
        let mut paths: Vec<String> =
            list.entries.into_iter().map(|stat| stat.path[top.len()..].to_owned()).collect();
        paths.sort();
        paths
    };
    assert_eq!(paths(guest.list(top.as_bytes(), 1).await.must("listing")), ["/a"]);
    assert_eq!(paths(guest.list(top.as_bytes(), 2).await.must("listing")), ["/a", "/a/b", "/a/f"]);
    assert_eq!(paths(guest.list(top.as_bytes(), 9).await.must("listing")), ["/a", "/a/b", "/a/b/c", "/a/f"]);
    guest.rename(&at("a"), &at("z")).await.must("renaming");
    assert_eq!(paths(guest.list(top.as_bytes(), 2).await.must("listing")), ["/z", "/z/b", "/z/f"]);
    refusal(&guest.remove(&at("z"), false).await.must_fail("removing a filled directory"));
    guest.remove(&at("z/f"), false).await.must("removing a file");
    guest.remove(&at("z"), true).await.must("removing with all below");
    assert_eq!(paths(guest.list(top.as_bytes(), 9).await.must("listing")), [""; 0]);
    refusal(&guest.list(b"relative", 1).await.must_fail("listing a relative path"));
}

async fn not_found(scene: &Scene) {
    let guest = &scene.guest;
    let path = b"/no/such/thing".as_slice();
    let read = guest.read_file(path, 0, None).await.err();
    let write = guest.write_file(path, &WriteOptions::default(), of_bytes(stream_of(Vec::new()))).await.err();
    let errors = [
        ("stat", guest.stat(path).await.err()),
        ("read", read),
        ("write", write),
        ("list", guest.list(path, 1).await.err()),
        ("remove", guest.remove(path, true).await.err()),
        ("rename", guest.rename(path, b"/tmp/x").await.err()),
        ("hash", guest.hash_file(path).await.err()),
        ("pull", guest.pull_archive(path, &[], Holes::Zeros).await.err()),
        ("watch", guest.watch(path, false).await.err()),
    ];
    for (what, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{what}: it succeeded"));
        assert_eq!(refusal(&error), ErrorKind::NotFound, "{what}: {error}");
    }
}

async fn sparse(scene: &Scene) {
    let path = format!("{}/sparse", scene.directory().await);
    let mut data = vec![0; 16 << 20];
    data[5_000_000..5_000_004].copy_from_slice(b"here");
    data[(16 << 20) - 1] = 1;
    write(scene, path.as_bytes(), &data, &WriteOptions::default()).await;
    assert!(read(scene, path.as_bytes()).await.1 == data, "it came back differently");
}

/// Holes are told and taken by their length.
async fn holes(scene: &Scene) {
    const HOLE: u64 = 20 << 20;
    let path = format!("{}/holes", scene.directory().await);
    let pieces = [Content::Hole(HOLE), Content::Data(Bytes::from_static(b"middle")), Content::Hole(HOLE)];
    let content = Box::pin(futures::stream::iter(pieces.map(Ok)));
    let written = scene.guest.write_file(path.as_bytes(), &WriteOptions::default(), content).await;
    assert_eq!(written.must("writing holes"), 2 * HOLE + 6);
    let (stat, mut content) = scene.guest.read_file(path.as_bytes(), 0, None).await.must("reading holes");
    assert_eq!(stat.size, 2 * HOLE + 6);
    let (mut data, mut length) = (Vec::new(), 0);
    while let Some(piece) = content.next().await {
        let piece = piece.must("reading a hole");
        length += piece.length();
        if let Content::Data(part) = piece {
            data.extend_from_slice(&part);
        }
    }
    assert_eq!(length, 2 * HOLE + 6);
    // Blocks around the data are data too.
    assert!(data.len() < 1 << 20, "{} bytes came as data", data.len());
    assert_eq!(data.iter().copied().filter(|byte| *byte != 0).collect::<Vec<u8>>(), b"middle");
}

async fn watch(scene: &Scene) {
    let top = scene.directory().await;
    let mut events = scene.guest.watch(top.as_bytes(), true).await.must("watching");
    let path = format!("{top}/new");
    write(scene, path.as_bytes(), b"x", &WriteOptions::default()).await;
    loop {
        let event = events.next().await.unwrap_or_else(|| panic!("the watch ended")).must("watching");
        assert!(event.path.starts_with(&top), "an event from elsewhere: {event:?}");
        if event.path == path {
            break;
        }
    }
}

async fn same_files(scene: &Scene) {
    let path = format!("{}/f", scene.directory().await);
    write(scene, path.as_bytes(), b"from outside\n", &WriteOptions::default()).await;
    let finished = scene.run(&shell(&format!("cat {path}; echo from inside > {path}"))).await;
    assert_eq!(finished.stdout, b"from outside\n", "{finished:?}");
    assert_eq!(read(scene, path.as_bytes()).await.1, b"from inside\n");
}
