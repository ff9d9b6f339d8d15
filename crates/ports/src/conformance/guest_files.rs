//! Checks of files in a guest.

use bytes::Bytes;
use futures::StreamExt;
use microvm_types::ErrorKind;
use microvm_types::files::{FileKind, FileStat, LeftOut, WriteOptions};

use super::guest::{Scene, gather, noise, refusal, shell, stream_of};
use super::{Must, Suite};
use crate::archive::PushedArchive;
use crate::guest::GuestError;

pub(super) async fn run(suite: &mut Suite, scene: &Scene) {
    suite.check("a file comes back as it was written", round_trip(scene)).await;
    suite.check("parts of a file can be read", parts(scene)).await;
    suite.check("a replaced file keeps its mode, and nothing is left beside it", replace(scene)).await;
    suite.check("a transfer that breaks off leaves the old file", broken_off(scene)).await;
    suite.check("odd names are names", odd_names(scene)).await;
    suite.check("directories are made, listed, renamed and removed", directories(scene)).await;
    suite.check("links are told as links", links(scene)).await;
    suite.check("what is not there is NotFound", not_found(scene)).await;
    suite.check("holes come back as zeros", sparse(scene)).await;
    suite.check("an archive comes back as it was pushed", archive(scene)).await;
    suite.check("an archive that leaves its directory is refused", hostile_archives(scene)).await;
    suite.check("FIFOs and devices are part of an archive", special_files(scene)).await;
    suite.check("many small files in one archive", many_files(scene)).await;
    suite.check("changes are reported to a watch", watch(scene)).await;
    suite.check("commands and file operations see the same files", same_files(scene)).await;
}

async fn write(scene: &Scene, path: &[u8], data: &[u8], options: &WriteOptions) {
    let pieces = data.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let bytes = scene.guest.write_file(path, options, stream_of(pieces)).await.must("writing a file");
    assert_eq!(bytes, data.len() as u64);
}

async fn read(scene: &Scene, path: &[u8]) -> (FileStat, Vec<u8>) {
    let (stat, stream) = scene.guest.read_file(path, 0, None).await.must("reading a file");
    (stat, gather(stream).await)
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
        scene.guest.write_file(again.as_bytes(), &options, stream_of(data)).await.must("writing again");
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
        assert_eq!(gather(stream).await, wanted.as_bytes(), "from {offset}, {length:?} bytes");
    }
}

async fn replace(scene: &Scene) {
    let directory = scene.directory().await;
    let path = format!("{directory}/deep/er/f");
    let options = WriteOptions { mode: Some(0o750), owner: Some((12, 34)), create_parents: true };
    write(scene, path.as_bytes(), b"old", &options).await;
    write(scene, path.as_bytes(), b"new content", &WriteOptions::default()).await;
    let (stat, data) = read(scene, path.as_bytes()).await;
    assert_eq!((stat.mode, stat.uid, stat.gid, data.as_slice()), (0o750, 12, 34, b"new content".as_slice()));
    let beside = scene.guest.list(format!("{directory}/deep/er").as_bytes(), 1).await.must("listing");
    assert_eq!(beside.len(), 1, "{beside:?}");
}

async fn broken_off(scene: &Scene) {
    let directory = scene.directory().await;
    let path = format!("{directory}/f");
    write(scene, path.as_bytes(), b"old", &WriteOptions::default()).await;
    let pieces =
        vec![Ok(Bytes::from(noise(200_000))), Err(GuestError::Source("the disk was pulled out".to_owned()))];
    let outcome = scene.guest.write_file(path.as_bytes(), &WriteOptions::default(), stream_of(pieces)).await;
    let error = outcome.must_fail("writing from a broken source");
    assert!(matches!(error, GuestError::Source(_)), "wrong error: {error}");
    assert_eq!(read(scene, path.as_bytes()).await.1, b"old");
    let beside = scene.guest.list(directory.as_bytes(), 1).await.must("listing");
    assert_eq!(beside.len(), 1, "{beside:?}");
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
    assert_eq!(all.len(), names.len(), "{all:?}");
}

async fn directories(scene: &Scene) {
    let guest = &scene.guest;
    let top = scene.directory().await;
    let at = |rest: &str| format!("{top}/{rest}").into_bytes();
    let error =
        guest.make_directory(&at("a/b/c"), 0o700, false).await.must_fail("making one without its parents");
    assert_eq!(refusal(&error), ErrorKind::NotFound);
    guest.make_directory(&at("a/b/c"), 0o700, true).await.must("making one with its parents");
    guest.make_directory(&at("a/b/c"), 0o700, true).await.must("making it again with parents");
    guest.make_directory(&at("a"), 0o700, false).await.must_fail("making what is there");
    let stat = guest.stat(&at("a/b/c")).await.must("asking about it");
    assert_eq!((stat.kind, stat.mode), (FileKind::Directory, 0o700));
    write(scene, &at("a/f"), b"x", &WriteOptions::default()).await;
    let paths = |stats: Vec<FileStat>| {
        let mut paths: Vec<String> =
            stats.into_iter().map(|stat| stat.path[top.len()..].to_owned()).collect();
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

async fn links(scene: &Scene) {
    let top = scene.directory().await;
    let at = |rest: &str| format!("{top}/{rest}").into_bytes();
    let archive = tar(&[(b"real", b'0', b"content", b""), (b"link", b'2', b"", b"real")]);
    scene
        .guest
        .push_archive(top.as_bytes(), stream_of(vec![Ok(archive.into())]))
        .await
        .must("pushing a link");
    let stat = scene.guest.stat(&at("link")).await.must("asking about the link");
    assert_eq!((stat.kind, stat.target.as_deref()), (FileKind::Symlink, Some("real")));
    assert_eq!(read(scene, &at("link")).await.1, b"content");
    scene.guest.remove(&at("link"), false).await.must("removing the link");
    assert_eq!(read(scene, &at("real")).await.1, b"content");
}

async fn not_found(scene: &Scene) {
    let guest = &scene.guest;
    let path = b"/no/such/thing".as_slice();
    let read = guest.read_file(path, 0, None).await.err();
    let write = guest.write_file(path, &WriteOptions::default(), stream_of(Vec::new())).await.err();
    let errors = [
        ("stat", guest.stat(path).await.err()),
        ("read", read),
        ("write", write),
        ("list", guest.list(path, 1).await.err()),
        ("remove", guest.remove(path, true).await.err()),
        ("rename", guest.rename(path, b"/tmp/x").await.err()),
        ("hash", guest.hash_file(path).await.err()),
        ("pull", guest.pull_archive(path, &[]).await.err()),
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

/// One entry of a hand-made archive: name, type flag, content, link target.
type Entry<'a> = (&'a [u8], u8, &'a [u8], &'a [u8]);

/// A ustar archive (POSIX.1-1988), made by hand so that it can be wrong on purpose.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, content, target) in entries {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000001\0");
        put(148, b"        ");
        put(156, &[*kind]);
        put(157, target);
        put(257, b"ustar\x0000");
        if matches!(kind, b'3' | b'4') {
            put(329, b"0000001\0");
            put(337, b"0000003\0");
        }
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

async fn archive(scene: &Scene) {
    let top = scene.directory().await;
    let (from, to) = (format!("{top}/from"), format!("{top}/to"));
    let archive = tar(&[
        (b"sub/", b'5', b"", b""),
        (b"sub/file", b'0', b"content", b""),
        (b"sub/hi\xffdden", b'0', b"odd", b""),
        (b"link", b'2', b"", b"sub/file"),
        (b"skipped/", b'5', b"", b""),
        (b"skipped/file", b'0', b"gone", b""),
    ]);
    let size = archive.len() as u64;
    let bytes = scene.guest.push_archive(from.as_bytes(), stream_of(vec![Ok(archive.into())])).await;
    assert_eq!(bytes.must("pushing"), PushedArchive { bytes: size, left_out: LeftOut::default() });
    let exclude = [format!("{from}/skipped").into_bytes()];
    let pulled = scene.guest.pull_archive(from.as_bytes(), &exclude).await.must("pulling");
    let data = gather(pulled.data).await;
    assert_eq!(
        pulled.left_out.await,
        Ok(LeftOut::default()),
        "what was asked to be excluded is not left out"
    );
    scene
        .guest
        .push_archive(to.as_bytes(), stream_of(vec![Ok(data.into())]))
        .await
        .must("pushing what was pulled");
    // Names are relative to the parent of what was pulled.
    let found = scene.guest.list(to.as_bytes(), 9).await.must("listing");
    let mut found: Vec<Vec<u8>> = found
        .into_iter()
        .map(|stat| stat.path_bytes.unwrap_or_else(|| stat.path.into_bytes())[to.len()..].to_vec())
        .collect();
    found.sort();
    let wanted: [&[u8]; 5] =
        [b"/from", b"/from/link", b"/from/sub", b"/from/sub/file", b"/from/sub/hi\xffdden"];
    assert_eq!(found, wanted);
    assert_eq!(read(scene, format!("{to}/from/link").as_bytes()).await.1, b"content");
    let one =
        scene.guest.pull_archive(format!("{from}/sub/file").as_bytes(), &[]).await.must("pulling one file");
    assert!(gather(one.data).await.starts_with(b"file\0"), "one file is not packed under its own name");
}

async fn hostile_archives(scene: &Scene) {
    let top = scene.directory().await;
    let inside = format!("{top}/inside");
    let outside = format!("{top}/outside");
    let bad: [(&str, Vec<u8>); 4] = [
        ("..", tar(&[(b"../outside", b'0', b"evil", b"")])),
        (".. below", tar(&[(b"a/", b'5', b"", b""), (b"a/../../outside", b'0', b"evil", b"")])),
        ("through a link", tar(&[(b"l", b'2', b"", b".."), (b"l/outside", b'0', b"evil", b"")])),
        (
            "through an absolute link",
            tar(&[(b"l", b'2', b"", top.as_bytes()), (b"l/outside", b'0', b"evil", b"")]),
        ),
    ];
    for (what, archive) in bad {
        // Some of these may be made harmless instead of refused; what counts is that nothing gets out.
        let outcome = scene.guest.push_archive(inside.as_bytes(), stream_of(vec![Ok(archive.into())])).await;
        if let Err(error) = outcome {
            refusal(&error);
        } else {
            assert!(what.contains("link"), "{what}: it was taken");
        }
        let out = scene.guest.stat(outside.as_bytes()).await;
        assert!(out.is_err(), "{what}: something was written outside");
    }
    let cut = tar(&[(b"cut", b'0', &noise(5000), b"")])[..2000].to_vec();
    let outcome = scene.guest.push_archive(inside.as_bytes(), stream_of(vec![Ok(cut.into())])).await;
    refusal(&outcome.must_fail("pushing half an archive"));
}

async fn special_files(scene: &Scene) {
    let guest = &scene.guest;
    let top = scene.directory().await;
    let archive = tar(&[
        (b"a-pipe", b'6', b"", b""),
        (b"null", b'3', b"", b""),
        (b"disk", b'4', b"", b""),
        (b"label", b'V', b"", b""),
        (b"z", b'0', b"content", b""),
    ]);
    let pushed = guest.push_archive(top.as_bytes(), stream_of(vec![Ok(archive.into())])).await;
    let left_out = pushed.must("pushing special files").left_out;
    assert_eq!(read(scene, format!("{top}/z").as_bytes()).await.1, b"content", "the rest did not come");
    assert!(left_out.entries.iter().any(|entry| entry.path == "label"), "{left_out:?}");
    let pulled = guest.pull_archive(top.as_bytes(), &[]).await.must("pulling special files");
    let data = gather(pulled.data).await;
    assert_eq!(pulled.left_out.await, Ok(LeftOut::default()));
    // Where the agent may not make devices, it tells of those.
    for (name, kind, number) in [("a-pipe", b'6', 0), ("null", b'3', 3), ("disk", b'4', 3)] {
        let told = left_out.entries.iter().any(|entry| entry.path == name);
        let made = guest
            .stat(format!("{top}/{name}").as_bytes())
            .await
            .is_ok_and(|stat| stat.kind == FileKind::Other);
        assert!(made != told, "{name}: made {made}, told of {told}: {left_out:?}");
        assert!(made || name != "a-pipe", "a FIFO was not made");
        let ending = [b"/", name.as_bytes(), b"\0"].concat();
        let packed = data.chunks(512).any(|header| {
            let minor = String::from_utf8_lossy(header.get(337..344).unwrap_or_default());
            header.windows(ending.len()).take(100).any(|window| window == ending)
                && header.get(156) == Some(&kind)
                && (kind == b'6' || u32::from_str_radix(&minor, 8) == Ok(number))
        });
        assert_eq!(packed, made, "{name} is not packed as what it is");
    }
}

async fn many_files(scene: &Scene) {
    const COUNT: usize = 2000;
    let top = scene.directory().await;
    let names: Vec<Vec<u8>> = (0..COUNT).map(|number| format!("file-{number}").into_bytes()).collect();
    let entries: Vec<Entry<'_>> =
        names.iter().map(|name| (name.as_slice(), b'0', b"small".as_slice(), b"".as_slice())).collect();
    let archive = tar(&entries);
    scene.guest.push_archive(top.as_bytes(), stream_of(vec![Ok(archive.into())])).await.must("pushing many");
    let found = scene.guest.list(top.as_bytes(), 1).await.must("listing many");
    assert_eq!(found.len(), COUNT);
    assert!(found.iter().all(|stat| stat.size == 5), "a size is wrong");
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
