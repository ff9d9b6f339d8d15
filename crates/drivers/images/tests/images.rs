//! The image store from outside: sources, names, damage, garbage.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use common::{Home, entry, extract, file, sha256, small_tar};
use futures::StreamExt;
use microvm_driver_images::ArchiveLimits;
use microvm_ports::storage::{ImageConfig, ImageSource, RecipeFile};
use microvm_ports::{ImageStore, Progress, StorageError};
use tar::{Builder, EntryType};

fn bad(result: Result<impl std::fmt::Debug, StorageError>, part: &str) {
    match result {
        Err(StorageError::BadInput { detail, .. }) => assert!(detail.contains(part), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tar_becomes_an_image_whatever_packs_it() {
    let home = Home::new();
    let plain = small_tar();
    let first = home.add_bytes("plain", &plain).await.unwrap();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        encoder.finish().unwrap()
    };
    for (name, packed) in [("gzip", gzip), ("zstd", zstd::encode_all(&plain[..], 1).unwrap())] {
        let info = home.add_bytes(name, &packed).await.unwrap();
        assert_eq!(info.digest, first.digest);
        assert!(info.names.contains(&name.to_owned()));
    }
    let images = home.storage.images().await.unwrap().found;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names, ["gzip", "plain", "zstd"]);
    for reference in ["plain", &first.digest, &first.digest[..7 + 12]] {
        let resolved = home.storage.image(reference).await.unwrap();
        assert_eq!(resolved.info.digest, first.digest);
        let Some(tree) = extract(&resolved.path) else { return };
        assert_eq!(std::fs::read(tree.path().join("root/etc/name")).unwrap(), b"value");
    }
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn hostile_archives_are_refused_and_nothing_stays() {
    let home = Home::new();
    type Case = (&'static str, EntryType, &'static [u8], &'static [u8], &'static str);
    let cases: [Case; 5] = [
        ("parent", EntryType::Regular, b"../escape", b"", ".."),
        ("inner", EntryType::Regular, b"a/../../escape", b"", ".."),
        ("hard link out", EntryType::Link, b"a", b"../../etc/passwd", ".."),
        ("hard link to nothing", EntryType::Link, b"a", b"/etc/passwd", "not in the archive"),
        ("unknown", EntryType::new(b'Z'), b"a", b"", "unknown type"),
    ];
    for (what, kind, name, link, part) in cases {
        println!("{what}");
        let mut tar = Builder::new(Vec::new());
        file(&mut tar, "fine", b"x");
        entry(&mut tar, kind, name, link, b"");
        bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, part);
    }
    bad(home.add_bytes("x", b"").await, "end mark");
    bad(home.add_bytes("x", &[0; 1024]).await, "nothing in it");
    bad(home.add_bytes("x", &[7; 5000]).await, "checksum");
    let tar = small_tar();
    for cut in [1024, 1024 + 200, 1024 + 512, 1024 + 700] {
        bad(home.add_bytes("x", &tar[..tar.len() - cut]).await, "ends");
    }
    assert!(home.storage.images().await.unwrap().found.is_empty());
    assert!(home.work().is_empty());
}

/// A pax record: its length, counting itself, a name and a value.
fn record(name: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {name}={value}\n");
    let mut length = rest.len();
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    format!("{length}{rest}").into_bytes()
}

#[tokio::test]
async fn small_archives_cannot_take_much_memory() {
    let home = Home::with(ArchiveLimits { memory: 4 << 20, ..ArchiveLimits::default() });
    let value = "x".repeat(4000);
    let global = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|index| record(&format!("SCHILY.xattr.user.{index}"), &value)).collect()
    };
    // Attributes for all entries: held once for each of them.
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::XGlobalHeader, b"g", b"", &global(8));
    for index in 0..1000 {
        entry(&mut tar, EntryType::Regular, format!("{index}").as_bytes(), b"", b"");
    }
    bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, "memory");
    // Ever more of them.
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::XGlobalHeader, b"g", b"", &global(20));
    bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, "global headers");
    // Hard links are no nodes, but names.
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "a", b"x");
    for index in 0..80_000 {
        entry(&mut tar, EntryType::Link, format!("{index}").as_bytes(), b"a", b"");
    }
    bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, "memory");
    assert!(home.storage.images().await.unwrap().found.is_empty());
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn absolute_paths_links_and_devices_are_data_inside_the_image() {
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "/etc/absolute", b"1");
    entry(&mut tar, EntryType::Symlink, b"out", b"/../../outside", b"");
    file(&mut tar, "out/inside", b"2");
    entry(&mut tar, EntryType::Char, b"dev/zero", b"", b"");
    entry(&mut tar, EntryType::Fifo, b"fifo", b"", b"");
    file(&mut tar, "a b\nc", b"3");
    entry(&mut tar, EntryType::Regular, b"\xff\xfe", b"", b"4");
    home.add_bytes("x", &tar.into_inner().unwrap()).await.unwrap();
    let resolved = home.storage.image("x").await.unwrap();
    let Some(tree) = extract(&resolved.path) else { return };
    let root = tree.path().join("root");
    assert_eq!(std::fs::read(root.join("etc/absolute")).unwrap(), b"1");
    assert_eq!(std::fs::read(root.join("outside/inside")).unwrap(), b"2");
    assert_eq!(std::fs::read(root.join("a b\nc")).unwrap(), b"3");
    assert_eq!(std::fs::read(root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe"))).unwrap(), b"4");
}

#[tokio::test]
async fn limits_hold() {
    let home = Home::with(ArchiveLimits { entries: 5, bytes: 10_000, ..ArchiveLimits::default() });
    let mut tar = Builder::new(Vec::new());
    for number in 0..10 {
        file(&mut tar, &format!("{number}"), b"");
    }
    bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, "more than 5 entries");
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "a", &[1; 10_001]);
    bad(home.add_bytes("x", &tar.into_inner().unwrap()).await, "GiB in all");
}

#[tokio::test]
async fn a_sparse_file_of_4_gib_keeps_its_holes() {
    let home = Home::new();
    let folder = home.path("sparse");
    std::fs::create_dir(&folder).unwrap();
    let sparse = std::fs::File::create(folder.join("file")).unwrap();
    sparse.set_len(4 << 30).unwrap();
    sparse.write_all_at(b"middle", 3 << 30).unwrap();
    for format in ["gnu", "pax"] {
        let archive = home.path(&format!("{format}.tar"));
        let status = std::process::Command::new("tar")
            .args(["-S", &format!("--format={format}"), "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(&folder)
            .arg("file")
            .status()
            .unwrap();
        assert!(status.success());
        assert!(archive.metadata().unwrap().len() < 1 << 20);
        let info = home.add_path(format, &archive).await.unwrap();
        assert!(info.size < 1 << 20, "{format}: {}", info.size);
    }
    let images = home.storage.images().await.unwrap().found;
    assert!(images.iter().map(|image| image.size).all(|size| size > 64 << 10), "the data is there");
}

#[tokio::test]
async fn a_folder_with_ten_thousand_files_and_odd_names() {
    let home = Home::new();
    let folder = home.path("folder");
    std::fs::create_dir_all(folder.join("many")).unwrap();
    for number in 0..10_000 {
        std::fs::write(folder.join(format!("many/{number}")), number.to_string()).unwrap();
    }
    std::fs::write(folder.as_std_path().join(std::ffi::OsStr::from_bytes(b"odd \n\xff")), "odd").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    std::fs::hard_link(folder.join("many/1"), folder.join("again")).unwrap();
    home.add_path("x", &folder).await.unwrap();
    let resolved = home.storage.image("x").await.unwrap();
    let Some(tree) = extract(&resolved.path) else { return };
    let root = tree.path().join("root");
    assert_eq!(std::fs::read_dir(root.join("many")).unwrap().count(), 10_000);
    assert_eq!(std::fs::read(root.join("many/9999")).unwrap(), b"9999");
    assert_eq!(std::fs::read(root.join(std::ffi::OsStr::from_bytes(b"odd \n\xff"))).unwrap(), b"odd");
    assert_eq!(std::fs::read_link(root.join("link")).unwrap().to_str(), Some("/etc/passwd"));
}

#[tokio::test]
async fn recipe_files_and_configuration_go_on_top() {
    let home = Home::new();
    let archive = home.path("archive");
    std::fs::write(&archive, small_tar()).unwrap();
    std::fs::write(home.path("from host"), "host").unwrap();
    let recipe = |path: &str, content: Option<&str>, source: Option<String>, mode: Option<&str>| RecipeFile {
        path: path.into(),
        content: content.map(Into::into),
        source,
        mode: mode.map(Into::into),
    };
    let files = [
        recipe("/etc/name", Some("new"), None, Some("0755")),
        recipe("/opt/x", None, Some(home.path("from host").into_string()), None),
    ];
    let config = ImageConfig {
        environment: [("A".to_owned(), "1".to_owned())].into(),
        user: "nobody".into(),
        ..ImageConfig::default()
    };
    let source = ImageSource::Path { path: archive };
    let info = home.storage.add_image("x", &source, &files, &config, Progress::ignored()).await.unwrap();
    assert_eq!(info.config, config);
    let resolved = home.storage.image("x").await.unwrap();
    if let Some(tree) = extract(&resolved.path) {
        assert_eq!(std::fs::read(tree.path().join("root/etc/name")).unwrap(), b"new");
        assert_eq!(std::fs::read(tree.path().join("root/opt/x")).unwrap(), b"host");
    }
    for wrong in [
        recipe("relative", Some(""), None, None),
        recipe("/a", None, None, None),
        recipe("/a", Some(""), None, Some("9")),
        recipe("/../a", Some(""), None, None),
    ] {
        let result = home.storage.add_image("y", &source, &[wrong], &config, Progress::ignored()).await;
        assert!(matches!(result, Err(StorageError::BadInput { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn damage_is_found_and_named() {
    let home = Home::new();
    let info = home.add_bytes("x", &small_tar()).await.unwrap();
    let resolved = home.storage.image("x").await.unwrap();
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
    let writable = || {
        std::fs::set_permissions(&resolved.path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(&resolved.path).unwrap()
    };
    let files = sha256(&std::fs::read(&resolved.path).unwrap());
    // One bit, anywhere.
    let image = writable();
    let mut byte = [0];
    image.read_exact_at(&mut byte, info.size / 2).unwrap();
    image.write_all_at(&[byte[0] ^ 4], info.size / 2).unwrap();
    let error = home.storage.image("x").await.unwrap_err();
    let StorageError::Damaged { what, detail } = &error else { panic!("{error:?}") };
    assert!(what.contains("`x`") && detail.contains(&files), "{error}");
    assert_eq!(home.storage.verify_all(Progress::ignored()).await.unwrap().len(), 1);
    // A new store does not believe an old stamp either.
    let other = common::open(home.path("store"), ArchiveLimits::default()).unwrap();
    assert!(matches!(other.image("x").await, Err(StorageError::Damaged { .. })));
    image.write_all_at(&byte, info.size / 2).unwrap();
    home.storage.image("x").await.unwrap();
    image.set_len(info.size - 1).unwrap();
    let error = home.storage.image("x").await.unwrap_err().to_string();
    assert!(
        error.contains(&info.size.to_string()) && error.contains(&(info.size - 1).to_string()),
        "{error}"
    );
    // Adding the same again heals it.
    home.add_bytes("x", &small_tar()).await.unwrap();
    home.storage.image("x").await.unwrap();
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
    let manifest = resolved.path.with_file_name("manifest.json");
    let mut bytes = std::fs::read(&manifest).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    assert!(matches!(home.storage.image("x").await, Err(StorageError::Damaged { .. })));
}

#[tokio::test]
async fn a_name_that_cannot_be_read_keeps_every_image() {
    let home = Home::new();
    let first = home.add_bytes("x", &small_tar()).await.unwrap();
    home.add_bytes("y", &small_tar()).await.unwrap();
    let name = home.path("store/images/names/x");
    let whole = std::fs::read(&name).unwrap();
    std::fs::write(&name, "cut short").unwrap();
    assert!(matches!(home.storage.collect_garbage(&[]).await, Err(StorageError::Damaged { .. })));
    home.storage.remove_image("y", &[]).await.unwrap();
    // Put back from a copy, it still has its image.
    std::fs::write(&name, whole).unwrap();
    assert_eq!(home.storage.image("x").await.unwrap().info.digest, first.digest);
    home.storage.remove_image("x", &[]).await.unwrap();
}

#[tokio::test]
async fn a_beginning_that_several_digests_have_is_refused_with_them() {
    let home = Home::new();
    let first = home.add_bytes("x", &small_tar()).await.unwrap();
    let hash = first.digest.strip_prefix("sha256:").unwrap();
    // The store lists images by their directories.
    let other = format!("{}{}", &hash[..40], if hash.ends_with('0') { "1" } else { "0" }.repeat(24));
    std::fs::create_dir(home.path("store/images").join(&other)).unwrap();
    let refused = home.storage.image(&first.digest[..19]).await.unwrap_err();
    assert!(matches!(refused, StorageError::AmbiguousImage { .. }), "{refused}");
    let told = refused.to_string();
    assert!(told.contains(&format!("{} (x)", first.digest)) && told.contains(&other), "{told}");
    let refused = home.storage.remove_image(&first.digest[..19], &[]).await.unwrap_err();
    assert!(matches!(refused, StorageError::AmbiguousImage { .. }), "{refused}");
    assert_eq!(home.storage.image(&first.digest).await.unwrap().info.digest, first.digest);
    assert_eq!(home.storage.image("x").await.unwrap().info.digest, first.digest);
}

#[tokio::test]
async fn names_move_and_images_go_with_their_last_name() {
    let home = Home::new();
    let first = home.add_bytes("x", &small_tar()).await.unwrap();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "other", b"other");
    let second = home.add_bytes("x", &tar.into_inner().unwrap()).await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(home.storage.image("x").await.unwrap().info.digest, second.digest);
    assert!(matches!(
        home.storage.remove_image("x", std::slice::from_ref(&second.digest)).await,
        Err(StorageError::InUse { .. })
    ));
    assert_eq!(home.storage.collect_garbage(std::slice::from_ref(&first.digest)).await.unwrap(), 0);
    assert!(home.storage.collect_garbage(&[]).await.unwrap() > 0);
    assert!(matches!(home.storage.image(&first.digest).await, Err(StorageError::UnknownImage(_))));
    home.storage.remove_image("x", &[]).await.unwrap();
    assert!(matches!(home.storage.remove_image("x", &[]).await, Err(StorageError::UnknownImage(_))));
    assert!(home.storage.images().await.unwrap().found.is_empty());
    for name in ["../x", "", "sha256:1234"] {
        assert!(home.storage.image(name).await.is_err());
        assert!(home.add_bytes(name, &small_tar()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_image_may_be_added_many_times_at_once() {
    let home = std::sync::Arc::new(Home::new());
    std::fs::write(home.path("archive"), small_tar()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let home = std::sync::Arc::clone(&home);
        tasks.spawn(async move { home.add_path(&format!("n{number}"), &home.path("archive")).await });
    }
    let results = tasks.join_all().await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let images = home.storage.images().await.unwrap().found;
    assert_eq!((images.len(), images[0].names.len()), (1, 8));
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn a_stream_becomes_an_image_and_a_broken_one_nothing() {
    let home = Home::new();
    let parts = |tar: Vec<u8>| {
        tar.chunks(100).map(|part| Ok(bytes::Bytes::copy_from_slice(part))).collect::<Vec<_>>()
    };
    let whole = futures::stream::iter(parts(small_tar())).boxed();
    let info = home
        .storage
        .add_image_from_stream("x", "a guest", &ImageConfig::default(), whole, Progress::ignored())
        .await
        .unwrap();
    assert_eq!(info.source, "a guest");
    assert_eq!(info.digest, home.add_bytes("y", &small_tar()).await.unwrap().digest);
    let mut broken = parts(small_tar());
    broken.truncate(3);
    broken.push(Err(microvm_ports::GuestError::Source("gone".into())));
    let stream = futures::stream::iter(broken).boxed();
    let error = home
        .storage
        .add_image_from_stream("z", "", &ImageConfig::default(), stream, Progress::ignored())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    assert_eq!(home.storage.images().await.unwrap().found.len(), 1);
    assert!(home.work().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_add_leaves_nothing() {
    let home = Home::new();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let stream =
        futures::stream::unfold(
            receiver,
            |mut receiver| async move { Some((receiver.recv().await?, receiver)) },
        )
        .boxed();
    let storage = home.storage.clone();
    let adding = tokio::spawn(async move {
        storage.add_image_from_stream("x", "", &ImageConfig::default(), stream, Progress::ignored()).await
    });
    let tar = small_tar();
    sender.send(Ok(bytes::Bytes::copy_from_slice(&tar[..700]))).await.unwrap();
    // The work begins on its own thread; its directory is the event.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while home.work().is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    adding.abort();
    assert!(adding.await.unwrap_err().is_cancelled());
    // The work ends on its own thread a moment later; its directory going is the event.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !home.work().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", home.work());
        tokio::task::yield_now().await;
    }
    assert!(home.storage.images().await.unwrap().found.is_empty());
}

#[tokio::test]
async fn an_oci_layout_is_taken_in_layer_by_layer_and_every_piece_is_checked() {
    let home = Home::new();
    let layout = home.path("layout");
    common::oci::write_layout(&layout);
    let info = home.add_path("x", &layout).await.unwrap();
    common::oci::check(&home, &info).await;
    // One flipped bit in any piece is found.
    for piece in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let piece = piece.unwrap().path();
        let sound = std::fs::read(&piece).unwrap();
        let mut bytes = sound.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&piece, &bytes).unwrap();
        bad(home.add_path("y", &layout).await, "damaged");
        std::fs::write(&piece, sound).unwrap();
    }
    // Links to what lies elsewhere, as build systems with a store leave them, are refused by name.
    for piece in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let piece = piece.unwrap().path();
        std::fs::rename(&piece, home.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(home.path("elsewhere"), &piece).unwrap();
        bad(home.add_path("z", &layout).await, "is a symbolic link");
        std::fs::rename(home.path("elsewhere"), &piece).unwrap();
    }
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn a_list_names_what_it_cannot_show() {
    let home = Home::new();
    home.add_bytes("good", &small_tar()).await.unwrap();
    let images = home.storage.images().await.unwrap();
    assert_eq!((images.found.len(), images.unreadable), (1, Vec::new()));
    let digest = images.found[0].digest.strip_prefix("sha256:").unwrap().to_owned();
    let names = home.path("store/images/names");
    std::fs::write(names.join("torn"), "{").unwrap();
    let manifest = home.path("store/images").join(&digest).join("manifest.json");
    std::fs::write(&manifest, "{").unwrap();
    let images = home.storage.images().await.unwrap();
    assert_eq!(images.found, []);
    let named: Vec<&str> = images.unreadable.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(named, ["torn", &format!("sha256:{digest}")]);
    // A name whose image is gone.
    std::fs::remove_dir_all(manifest.parent().unwrap()).unwrap();
    let images = home.storage.images().await.unwrap();
    assert!(images.unreadable.iter().any(|one| one.name == "good" && one.reason.contains("missing")));
}
