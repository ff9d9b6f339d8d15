//! Checks of archives to and from a guest.

use microvm_ports::archive::{Holes, PushedArchive};
use microvm_types::ErrorKind;
use microvm_types::files::{FileKind, FileOwner, FileTime, LeftOut, WriteOptions};

use super::files::{read, write};
use super::{Scene, gather, noise, refusal, stream_of};
use crate::{Must, Suite};

pub(super) async fn run(suite: &mut Suite, scene: &Scene) {
    suite.check("links are told as links", links(scene)).await;
    suite.check("an archive comes back as it was pushed", archive(scene)).await;
    suite.check("an archive that leaves its directory is refused", hostile_archives(scene)).await;
    suite.check("FIFOs and devices are part of an archive", special_files(scene)).await;
    suite.check("times are kept to the nanosecond", times(scene)).await;
    suite.check("owners are those that were named", owners(scene)).await;
    suite.check("many small files in one archive", many_files(scene)).await;
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
    let bytes = scene.guest.push_archive(from.as_bytes(), None, stream_of(vec![Ok(archive.into())])).await;
    assert_eq!(bytes.must("pushing"), PushedArchive { bytes: size, left_out: LeftOut::default() });
    let exclude = [format!("{from}/skipped").into_bytes()];
    let pulled = scene.guest.pull_archive(from.as_bytes(), &exclude, Holes::Zeros).await.must("pulling");
    let data = gather(pulled.data).await;
    assert_eq!(
        pulled.left_out.await,
        Ok(LeftOut::default()),
        "what was asked to be excluded is not left out"
    );
    scene
        .guest
        .push_archive(to.as_bytes(), None, stream_of(vec![Ok(data.into())]))
        .await
        .must("pushing what was pulled");
    // Names are relative to the parent of what was pulled.
    let found = scene.guest.list(to.as_bytes(), 9).await.must("listing");
    let mut found: Vec<Vec<u8>> = found
        .entries
        .into_iter()
        .map(|stat| stat.path_bytes.unwrap_or_else(|| stat.path.into_bytes())[to.len()..].to_vec())
        .collect();
    found.sort();
    let wanted: [&[u8]; 5] =
        [b"/from", b"/from/link", b"/from/sub", b"/from/sub/file", b"/from/sub/hi\xffdden"];
    assert_eq!(found, wanted);
    assert_eq!(read(scene, format!("{to}/from/link").as_bytes()).await.1, b"content");
    let one = scene
        .guest
        .pull_archive(format!("{from}/sub/file").as_bytes(), &[], Holes::Zeros)
        .await
        .must("pulling one file");
    // A pax header may come before its own.
    let one = gather(one.data).await;
    let named = one.chunks(512).any(|header| header.starts_with(b"file\0"));
    assert!(named, "one file is not packed under its own name");
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
        let outcome =
            scene.guest.push_archive(inside.as_bytes(), None, stream_of(vec![Ok(archive.into())])).await;
        if let Err(error) = outcome {
            refusal(&error);
        } else {
            assert!(what.contains("link"), "{what}: it was taken");
        }
        let out = scene.guest.stat(outside.as_bytes()).await;
        assert!(out.is_err(), "{what}: something was written outside");
    }
    let cut = tar(&[(b"cut", b'0', &noise(5000), b"")])[..2000].to_vec();
    let outcome = scene.guest.push_archive(inside.as_bytes(), None, stream_of(vec![Ok(cut.into())])).await;
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
    let pushed = guest.push_archive(top.as_bytes(), None, stream_of(vec![Ok(archive.into())])).await;
    let left_out = pushed.must("pushing special files").left_out;
    assert_eq!(read(scene, format!("{top}/z").as_bytes()).await.1, b"content", "the rest did not come");
    assert!(left_out.entries.iter().any(|entry| entry.path == "label"), "{left_out:?}");
    let pulled = guest.pull_archive(top.as_bytes(), &[], Holes::Zeros).await.must("pulling special files");
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

async fn times(scene: &Scene) {
    let guest = &scene.guest;
    let top = scene.directory().await;
    let modified = |path: String| async move {
        guest.stat(path.as_bytes()).await.must("asking about a time").modified()
    };
    for (name, time) in
        [("late", FileTime::new(981_173_106, 123_456_789)), ("early", FileTime::new(-2, 5_000))]
    {
        let options = WriteOptions { modified: Some(time), ..WriteOptions::default() };
        write(
            scene,
            format!("{top}/tree/{name}").as_bytes(),
            b"x",
            &WriteOptions { create_parents: true, ..options },
        )
        .await;
        assert_eq!(modified(format!("{top}/tree/{name}")).await, time);
    }
    let pulled =
        guest.pull_archive(format!("{top}/tree").as_bytes(), &[], Holes::Zeros).await.must("pulling");
    let data = gather(pulled.data).await;
    let wanted = modified(format!("{top}/tree")).await;
    guest
        .push_archive(format!("{top}/again").as_bytes(), None, stream_of(vec![Ok(data.into())]))
        .await
        .must("pushing");
    assert_eq!(modified(format!("{top}/again/tree/late")).await, FileTime::new(981_173_106, 123_456_789));
    assert_eq!(modified(format!("{top}/again/tree/early")).await, FileTime::new(-2, 5_000));
    assert_eq!(modified(format!("{top}/again/tree")).await, wanted, "of a directory");
}

async fn owners(scene: &Scene) {
    let guest = &scene.guest;
    let top = scene.directory().await;
    let at = |rest: &str| format!("{top}/{rest}").into_bytes();
    let owner = |rest: &'static str| {
        let path = at(rest);
        async move {
            let stat = guest.stat(&path).await.must("asking about an owner");
            (stat.uid, stat.gid)
        }
    };
    let named = FileOwner::from_text("1234:56");
    guest.make_directory(&at("made/deep"), 0o755, true, Some(&named)).await.must("making directories");
    assert_eq!((owner("made").await, owner("made/deep").await), ((1234, 56), (1234, 56)));
    let entries: [Entry<'_>; 4] = [
        (b"sub/", b'5', b"", b""),
        (b"sub/file", b'0', b"x", b""),
        (b"other/link", b'2', b"", b"x"),
        (b"pipe", b'6', b"", b""),
    ];
    let data = || stream_of(vec![Ok(tar(&entries).into())]);
    guest.push_archive(&at("all"), Some(&named), data()).await.must("pushing for an owner");
    for name in ["all", "all/sub", "all/sub/file", "all/other", "all/other/link", "all/pipe"] {
        assert_eq!(owner(name).await, (1234, 56), "{name}");
    }
    let mut options = WriteOptions {
        owner: Some(FileOwner::from_text("77")),
        create_parents: true,
        ..WriteOptions::default()
    };
    write(scene, &at("new/file"), b"x", &options).await;
    assert_eq!((owner("new").await.0, owner("new/file").await.0), (77, 77));
    // The default user leaves to others what is theirs: a replaced file, a directory that is there.
    options.owner = Some(FileOwner::Default);
    write(scene, &at("new/file"), b"y", &options).await;
    guest
        .push_archive(&at("all"), Some(&FileOwner::Default), data())
        .await
        .must("pushing for the default user");
    assert_eq!((owner("new/file").await.0, owner("all/sub").await), (77, (1234, 56)));
    assert_eq!(owner("all/sub/file").await, (0, 0), "the default user of a guest without an image is root");
    let unknown = FileOwner::from_text("nobody-here");
    let error = guest.push_archive(&at("none"), Some(&unknown), data()).await.must_fail("pushing for nobody");
    assert_eq!(refusal(&error), ErrorKind::NotFound);
    assert!(guest.stat(&at("none")).await.is_err(), "something was made");
}

async fn many_files(scene: &Scene) {
    const COUNT: usize = 2000;
    let top = scene.directory().await;
    let names: Vec<Vec<u8>> = (0..COUNT).map(|number| format!("file-{number}").into_bytes()).collect();
    let entries: Vec<Entry<'_>> =
        names.iter().map(|name| (name.as_slice(), b'0', b"small".as_slice(), b"".as_slice())).collect();
    let archive = tar(&entries);
    scene
        .guest
        .push_archive(top.as_bytes(), None, stream_of(vec![Ok(archive.into())]))
        .await
        .must("pushing many");
    let found = scene.guest.list(top.as_bytes(), 1).await.must("listing many");
    assert_eq!(found.entries.len(), COUNT);
    assert!(found.entries.iter().all(|stat| stat.size == 5), "a size is wrong");
}

async fn links(scene: &Scene) {
    let top = scene.directory().await;
    let at = |rest: &str| format!("{top}/{rest}").into_bytes();
    let archive = tar(&[(b"real", b'0', b"content", b""), (b"link", b'2', b"", b"real")]);
    scene
        .guest
        .push_archive(top.as_bytes(), None, stream_of(vec![Ok(archive.into())]))
        .await
        .must("pushing a link");
    let stat = scene.guest.stat(&at("link")).await.must("asking about the link");
    assert_eq!((stat.kind, stat.target.as_deref()), (FileKind::Symlink, Some("real")));
    assert_eq!(read(scene, &at("link")).await.1, b"content");
    scene.guest.remove(&at("link"), false).await.must("removing the link");
    assert_eq!(read(scene, &at("real")).await.1, b"content");
}
