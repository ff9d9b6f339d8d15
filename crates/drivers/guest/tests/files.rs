//! Files, archives and ports, against an agent on this host.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use common::{HostAgent, bytes_of, collect, collect_content, content_of, noise};
use futures::StreamExt as _;
use microvm_ports::guest::Identity;
use microvm_ports::{GuestError, Holes, content};
use microvm_types::ErrorKind;
use microvm_types::files::{FileChange, FileKind, FileOwner, WriteOptions};
use sha2::{Digest as _, Sha256};

#[tokio::test]
async fn files_are_written_whole_and_read_back() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut content = noise(300_000);
    // The mark of the channel itself is nothing special in a file.
    content[4096 - 16..4096 + 16].copy_from_slice(&microvm_protocol::PREAMBLE);
    for at in [100_000, 100_032] {
        content[at..at + 32].copy_from_slice(&microvm_protocol::PREAMBLE);
    }
    for name in ["plain", "with space\nand newline", "deep/er/file"] {
        let path = agent.path(name);
        let options = WriteOptions { create_parents: true, mode: Some(0o640), ..WriteOptions::default() };
        let bytes = guest.write_file(&path, &options, content_of(vec![content.clone()])).await.unwrap();
        let expected: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes, 300_000);
        let (stat, data) = guest.read_file(&path, 0, None).await.unwrap();
        assert_eq!((stat.size, stat.mode, stat.kind), (300_000, 0o640, FileKind::File));
        assert!(collect_content(data).await == content);
        assert_eq!(guest.hash_file(&path).await.unwrap(), expected);
    }
    let (_, part) = guest.read_file(&agent.path("plain"), 1000, Some(77)).await.unwrap();
    assert_eq!(collect_content(part).await, content[1000..1077]);
    let mut odd = agent.path("x");
    odd.push(0xff);
    guest.write_file(&odd, &WriteOptions::default(), content_of(vec![b"odd".to_vec()])).await.unwrap();
    assert_eq!(guest.stat(&odd).await.unwrap().path_bytes, Some(odd.clone()));
    guest.remove(&odd, false).await.unwrap();
    assert_eq!(guest.stat(&odd).await.unwrap_err().kind(), ErrorKind::NotFound);
    // Nothing temporary is left.
    let names = guest.list(agent.directory.path().to_str().unwrap().as_bytes(), 9).await.unwrap();
    assert!(names.entries.iter().all(|entry| !entry.path.contains(".microvm")), "{names:?}");
    assert_eq!(names.entries.iter().filter(|entry| entry.kind == FileKind::File).count(), 3);
}

#[tokio::test]
async fn a_broken_source_leaves_the_old_file() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let path = agent.path("kept");
    guest.write_file(&path, &WriteOptions::default(), content_of(vec![b"old".to_vec()])).await.unwrap();
    let broken =
        futures::stream::iter(vec![Ok(noise(100_000).into()), Err(GuestError::Source("gone".to_owned()))]);
    let error = guest
        .write_file(&path, &WriteOptions::default(), content::of_bytes(Box::pin(broken)))
        .await
        .unwrap_err();
    assert!(matches!(error, GuestError::Source(_)));
    guest.ping().await.unwrap();
    assert_eq!(collect_content(guest.read_file(&path, 0, None).await.unwrap().1).await, b"old");
}

/// Archives of sparse files as GNU tar packs them, in each of its forms; `None` without GNU tar.
fn sparse_archives(root: &std::path::Path) -> Option<Vec<(&'static str, Vec<u8>)>> {
    use std::os::unix::fs::FileExt as _;
    std::fs::create_dir(root).unwrap();
    let make = |name: &str, length: u64, parts: &[(u64, usize)]| {
        let file = std::fs::File::create(root.join(name)).unwrap();
        file.set_len(length).unwrap();
        for (place, size) in parts {
            file.write_all_at(&noise(*size), *place).unwrap();
        }
    };
    make("hole", 1 << 20, &[]);
    make("begin", 10 << 20, &[(0, 5000)]);
    make("middle", (10 << 20) + 77, &[(5 << 20, 70_000), (8 << 20, 1)]);
    make("end", (3 << 20) + 3, &[(3 << 20, 3)]);
    // More parts than the first header, and than several that follow it, have room for.
    make("many", 40 << 20, &(0..150).map(|at| (at * (256 << 10), 4096)).collect::<Vec<_>>());
    make(&"n".repeat(150), 1 << 20, &[(512 << 10, 4096)]);
    std::fs::write(root.join("plain"), "plain").unwrap();
    let forms = [
        ("old GNU", ["--format=gnu", "--sparse"]),
        ("pax 0.0", ["--format=posix", "--sparse-version=0.0"]),
        ("pax 0.1", ["--format=posix", "--sparse-version=0.1"]),
        ("pax 1.0", ["--format=posix", "--sparse-version=1.0"]),
    ];
    let pack = |(form, options): (&'static str, [&str; 2])| {
        let tar = std::process::Command::new("tar")
            .args(["--sparse", "--hole-detection=seek"])
            .args(options)
            .args(["-cf", "-", "-C"])
            .args([root, std::path::Path::new(".")])
            .output()
            .unwrap();
        (form, tar.stdout)
    };
    let archives: Vec<_> = forms.into_iter().map(pack).collect();
    if archives.iter().any(|(_, bytes)| bytes.is_empty()) {
        eprintln!("SKIPPED: tar is not GNU tar");
        return None;
    }
    assert!(archives.iter().all(|(_, bytes)| bytes.len() < 4 << 20), "they are not sparse");
    Some(archives)
}

#[tokio::test]
async fn sparse_files_of_every_form_of_tar_are_what_they_were() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let source = tempfile::tempdir().unwrap();
    let source = source.path().join("source");
    let Some(archives) = sparse_archives(&source) else { return };
    for (form, bytes) in archives {
        let target = agent.directory.path().join(form);
        guest.push_archive(target.as_os_str().as_bytes(), None, bytes_of(vec![bytes])).await.unwrap();
        let names = |path: &std::path::Path| -> std::collections::BTreeSet<_> {
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(&target), names(&source), "{form}");
        for name in names(&source) {
            let same =
                std::fs::read(target.join(&name)).unwrap() == std::fs::read(source.join(&name)).unwrap();
            assert!(same, "{form}: {} has another content", name.display());
            let disk = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().blocks() * 512;
            let (made, was) = (disk(target.join(&name)), disk(source.join(&name)));
            // In the old form holes are found again in the zeros, and only whole buffers of them.
            let more = if form == "old GNU" { 12 << 20 } else { 256 << 10 };
            assert!(made < was + more, "{form}: {} takes {made} bytes, not {was}", name.display());
        }
    }
    // A map that promises what does not come.
    for (map, part) in
        [("0,600", "less data"), ("0,100", "more data"), ("9000,512", "overlap"), ("0", "half a part")]
    {
        let mut builder = tar::Builder::new(Vec::new());
        let records = [("size", "9000"), ("numblocks", "1"), ("name", "x"), ("map", map)];
        let records = records.map(|(key, value)| (format!("GNU.sparse.{key}"), value));
        builder
            .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_bytes())))
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(512);
        header.set_mode(0o644);
        builder.append_data(&mut header, "GNUSparseFile.1/x", &[1; 512][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let error = guest.push_archive(&agent.path("bad"), None, bytes_of(vec![bytes])).await.unwrap_err();
        assert!(error.to_string().contains(part), "{map}: {error}");
    }
}

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        let data = if kind.is_file() { content.as_bytes() } else { &[] };
        if !kind.is_file() {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn archives_go_in_and_out() {
    use tar::EntryType;
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let long = format!("tree/{}/{}", "d".repeat(90), "f".repeat(90));
    let mut builder = tar::Builder::new(archive(&[
        ("tree/one", EntryType::Regular, "1"),
        ("tree/link", EntryType::Symlink, "one"),
    ]));
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o755);
    builder.get_mut().truncate(2560 - 1024);
    builder.append_data(&mut header, &long, &b"12345"[..]).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.flush().unwrap();
    guest.push_archive(&agent.path("in"), None, bytes_of(vec![bytes])).await.unwrap();
    let root = agent.directory.path().join("in");
    assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"12345");
    assert_eq!(std::fs::metadata(root.join("tree/one")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::read_link(root.join("tree/link")).unwrap().to_str(), Some("one"));

    let exclude = agent.path("in/tree/one");
    let packed =
        collect(guest.pull_archive(&agent.path("in/tree"), &[exclude], Holes::Zeros).await.unwrap().data)
            .await;
    let mut seen = Vec::new();
    for entry in tar::Archive::new(&packed[..]).entries().unwrap() {
        seen.push(entry.unwrap().path().unwrap().display().to_string());
    }
    seen.sort();
    assert_eq!(seen, ["tree/".to_owned(), format!("tree/{}/", "d".repeat(90)), long, "tree/link".to_owned()]);
    assert_eq!(
        guest.pull_archive(b"/no/such", &[], Holes::Zeros).await.err().unwrap().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_directory_of_an_archive_goes_through_a_link() {
    use tar::EntryType::{Directory, Regular};
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let root = agent.directory.path().join("merged");
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::create_dir(agent.directory.path().join("outside")).unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    std::os::unix::fs::symlink("../outside", root.join("away")).unwrap();
    let target = agent.path("merged");
    let push = |entries: &[(&str, tar::EntryType, &str)]| {
        guest.push_archive(&target, None, bytes_of(vec![archive(entries)]))
    };
    push(&[("bin/", Directory, ""), ("bin/tool", Regular, "t"), ("last", Regular, "l")]).await.unwrap();
    assert_eq!(std::fs::read(root.join("usr/bin/tool")).unwrap(), b"t");
    assert_eq!(std::fs::read(root.join("last")).unwrap(), b"l");
    assert!(std::fs::symlink_metadata(root.join("bin")).unwrap().is_symlink());
    let error = push(&[("away/", Directory, ""), ("away/x", Regular, "x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!agent.directory.path().join("outside/x").exists());
}

#[tokio::test]
async fn archives_cannot_leave_their_target() {
    use tar::EntryType::{Link, Regular, Symlink};
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    std::fs::write(agent.directory.path().join("victim"), "safe").unwrap();
    let cases: &[&[(&str, tar::EntryType, &str)]] = &[
        &[("../victim", Regular, "x")],
        &[("/tmp/microvm-victim", Regular, "x")],
        &[("out", Symlink, ".."), ("out/victim", Regular, "x")],
        &[("abs", Symlink, "/tmp"), ("abs/microvm-victim", Regular, "x")],
        &[("hard", Link, "../victim")],
        &[("hard", Link, "/etc/passwd")],
    ];
    for case in cases {
        let result = guest.push_archive(&agent.path("jail"), None, bytes_of(vec![archive(case)])).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid, "{case:?}");
    }
    assert_eq!(std::fs::read(agent.directory.path().join("victim")).unwrap(), b"safe");
    assert!(!std::path::Path::new("/tmp/microvm-victim").exists());
    let cut = archive(&[("cut", Regular, "content")]);
    let result = guest.push_archive(&agent.path("jail"), None, bytes_of(vec![cut[..513].to_vec()])).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid);
    // What is no archive is told, and ends nothing else.
    assert!(guest.push_archive(&agent.path("jail"), None, bytes_of(vec![noise(5000)])).await.is_err());
    guest.ping().await.unwrap();
}

#[tokio::test]
async fn what_is_not_in_an_archive_is_told() {
    use std::os::unix::net::UnixListener;
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let root = agent.directory.path().join("mixed");
    std::fs::create_dir(&root).unwrap();
    let mut sockets = Vec::new();
    for number in 0..30 {
        sockets.push(UnixListener::bind(root.join(format!("socket-{number:02}"))).unwrap());
    }
    std::fs::write(root.join("file"), "f").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0)
        .unwrap();
    std::fs::hard_link(root.join("pipe"), root.join("same-pipe")).unwrap();
    let pulled = guest.pull_archive(&agent.path("mixed"), &[], Holes::Zeros).await.unwrap();
    let packed = collect(pulled.data).await;
    let left_out = pulled.left_out.await.unwrap();
    assert_eq!((left_out.count, left_out.entries.len()), (30, 20), "{left_out:?}");
    for entry in &left_out.entries {
        assert!(entry.path.contains("/mixed/socket-") && entry.reason.contains("socket"), "{entry:?}");
    }
    let mut seen = Vec::new();
    for entry in tar::Archive::new(&packed[..]).entries().unwrap() {
        let entry = entry.unwrap();
        seen.push((entry.path().unwrap().display().to_string(), entry.header().entry_type()));
    }
    use tar::EntryType::{Directory, Fifo, Link, Regular};
    let wanted =
        [("mixed/", Directory), ("mixed/file", Regular), ("mixed/pipe", Fifo), ("mixed/same-pipe", Link)];
    assert_eq!(seen, wanted.map(|(name, kind)| (name.to_owned(), kind)));
    // What comes of it in a guest is the same again, and nothing is left out on that way.
    let pushed = guest.push_archive(&agent.path("again"), None, bytes_of(vec![packed])).await.unwrap();
    assert_eq!(pushed.left_out.count, 0, "{pushed:?}");
    let made = std::fs::symlink_metadata(agent.directory.path().join("again/mixed/pipe")).unwrap();
    assert!(made.file_type().is_fifo() && made.nlink() == 2 && made.mode() & 0o777 == 0o640, "{made:?}");
}

#[tokio::test]
async fn what_is_copied_belongs_to_the_default_user() {
    let Some(agent) = HostAgent::start().await else { return };
    if std::fs::metadata(agent.directory.path()).unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root gives files away");
        return;
    }
    let identity = Identity { user: "1234:56".to_owned(), ..Identity::default() };
    let guest = common::connect(&agent.endpoint, 1, &identity).await;
    let owner = |name: &str| {
        let found = std::fs::symlink_metadata(agent.directory.path().join(name)).unwrap();
        (found.uid(), found.gid())
    };
    let default = FileOwner::Default;
    let data =
        archive(&[("tree/file", tar::EntryType::Regular, "x"), ("tree/link", tar::EntryType::Symlink, "x")]);
    guest.push_archive(&agent.path("a/b"), Some(&default), bytes_of(vec![data.clone()])).await.unwrap();
    guest.make_directory(&agent.path("made/deep"), 0o755, true, Some(&default)).await.unwrap();
    let mut options = WriteOptions { owner: Some(default), create_parents: true, ..WriteOptions::default() };
    guest.write_file(&agent.path("new/file"), &options, content_of(vec![b"x".to_vec()])).await.unwrap();
    let made =
        ["a", "a/b", "a/b/tree", "a/b/tree/file", "a/b/tree/link", "made", "made/deep", "new", "new/file"];
    for name in made {
        assert_eq!(owner(name), (1234, 56), "{name}");
    }
    // Without an owner it is root's, and the archive's word counts.
    options.owner = None;
    guest.write_file(&agent.path("plain/file"), &options, content_of(vec![b"x".to_vec()])).await.unwrap();
    guest.push_archive(&agent.path("c"), None, bytes_of(vec![data])).await.unwrap();
    assert_eq!((owner("plain/file"), owner("c/tree/file")), ((0, 0), (0, 0)));
}

#[tokio::test]
async fn changes_are_watched_and_ports_connected() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let mut changes = guest.watch(agent.directory.path().to_str().unwrap().as_bytes(), true).await.unwrap();
    std::fs::create_dir(agent.directory.path().join("new")).unwrap();
    let first = changes.next().await.unwrap().unwrap();
    assert!(first.path.ends_with("/new") && first.change == FileChange::Created, "{first:?}");

    // What is in a new directory before it is watched is told all the same.
    let new = agent.directory.path().join("deep/er/est");
    std::fs::create_dir_all(&new).unwrap();
    std::fs::write(new.join("file"), "early").unwrap();
    std::fs::write(new.join(std::ffi::OsStr::from_bytes(b"odd\xff")), "").unwrap();
    let mut missing = std::collections::BTreeSet::from([
        "/deep",
        "/deep/er",
        "/deep/er/est/file",
        "/deep/er/est/odd\u{fffd}",
    ]);
    while !missing.is_empty() {
        let change = tokio::time::timeout(std::time::Duration::from_secs(10), changes.next()).await;
        let change = change.unwrap_or_else(|_| panic!("never told: {missing:?}")).unwrap().unwrap();
        missing.retain(|end| !change.path.ends_with(end) || change.change != FileChange::Created);
        if change.path.ends_with("odd\u{fffd}") {
            assert!(change.path_bytes.unwrap().ends_with(b"/odd\xff"));
        }
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = socket.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let connection = guest.connect_port(port).await.unwrap();
    let sent = noise(1_000_000);
    let outgoing = connection.outgoing.clone();
    drop(connection.outgoing);
    let to_send = sent.clone();
    tokio::spawn(async move {
        for part in to_send.chunks(50_000) {
            outgoing.send(part.to_vec().into()).await.unwrap();
        }
    });
    assert!(collect(connection.incoming).await == sent);
    echo.await.unwrap();
    assert_eq!(guest.connect_port(port).await.err().unwrap().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn lists_say_what_is_missing() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let top = agent.directory.path();
    let many = top.join("many");
    std::fs::create_dir(&many).unwrap();
    for number in 0..100_001 {
        std::fs::File::create(many.join(number.to_string())).unwrap();
    }
    let list = guest.list(many.to_str().unwrap().as_bytes(), 1).await.unwrap();
    assert_eq!((list.entries.len(), list.truncated), (100_000, true));
    std::fs::remove_file(many.join("0")).unwrap();
    let list = guest.list(many.to_str().unwrap().as_bytes(), 1).await.unwrap();
    assert_eq!((list.entries.len(), list.truncated), (100_000, false));
    if std::fs::metadata(&many).unwrap().uid() == 0 {
        // Whoever is root may read every directory.
        return;
    }
    std::fs::remove_dir_all(&many).unwrap();
    std::fs::create_dir(top.join("closed")).unwrap();
    std::fs::set_permissions(top.join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let list = guest.list(top.to_str().unwrap().as_bytes(), 2).await.unwrap();
    std::fs::set_permissions(top.join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!((list.unreadable, list.truncated), (1, false));
    assert!(list.first_unreadable.unwrap().ends_with("/closed"));
}

/// An archive of one file with these pax records.
fn with_records(kind: tar::EntryType, records: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    if kind.is_symlink() {
        builder.append_link(&mut header, "made", "nowhere").unwrap();
    } else {
        builder.append_data(&mut header, "made", content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_map_of_a_hundred_thousand_parts_is_taken() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let (count, begin) = (100_000u64, 1u64 << 33);
    let places: Vec<u64> = (0..count).map(|at| begin + at * 8).collect();
    let map = places.iter().map(|place| format!("{place},1")).collect::<Vec<_>>().join(",");
    let size = begin + count * 8;
    let (size_text, count_text) = (size.to_string(), count.to_string());
    let records = [
        ("GNU.sparse.size", size_text.as_bytes()),
        ("GNU.sparse.numblocks", count_text.as_bytes()),
        ("GNU.sparse.name", b"made"),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    assert!(map.len() > 1 << 20, "older agents took maps of this size");
    let content: Vec<u8> = (0..count).map(|at| u8::try_from(at % 250).unwrap() + 1).collect();
    let bytes = with_records(tar::EntryType::Regular, &records, &content);
    guest.push_archive(&agent.path("in"), None, bytes_of(vec![bytes])).await.unwrap();
    let file = std::fs::File::open(agent.directory.path().join("in/made")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut found = vec![0; usize::try_from(count * 8).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, begin).unwrap();
    assert!(found.chunks(8).zip(&content).all(|(part, byte)| part[0] == *byte && part[1..] == [0; 7]));
    // There is a bound all the same.
    let name = vec![b'x'; 9 << 20];
    let endless = with_records(tar::EntryType::Regular, &[("comment", &name)], b"");
    let error = guest.push_archive(&agent.path("no"), None, bytes_of(vec![endless])).await.unwrap_err();
    assert!(error.to_string().contains("at most 8388608 are read"), "{error}");
}
