//! Images on top of images: files, folders, layers, the build cache, and what goes wrong on the way.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::fs;

use bytes::Bytes;
use camino::Utf8Path;
use common::{Home, entry, extract, file, open, small_tar};
use microvm_conformance::fixtures::{SmallDisk, is_root};
use microvm_driver_images::ArchiveLimits;
use microvm_ports::storage::{Additions, ImageConfig, ImageInfo, RecipeFile};
use microvm_ports::{ImageStore, Progress, StorageError};
use tar::{Builder, EntryType};

fn from_host(source: &Utf8Path, path: &str) -> RecipeFile {
    RecipeFile { path: path.to_owned(), content: None, source: Some(source.to_string()), mode: None }
}

async fn extend(home: &Home, name: &str, additions: &Additions) -> Result<ImageInfo, StorageError> {
    let config = ImageConfig { user: "app".to_owned(), ..ImageConfig::default() };
    let added = home.storage.extend_image(name, "base", additions, &config, Progress::ignored()).await;
    added.map(|added| added.info)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_folders_are_put_over_what_the_base_has() {
    let home = Home::new();
    let base = home.add_bytes("base", &small_tar()).await.unwrap();
    let app = home.path("app");
    fs::create_dir_all(app.join("sub")).unwrap();
    fs::write(app.join("sub/data"), vec![7; 100_000]).unwrap();
    fs::write(app.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(app.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("sub/data", app.join("link")).unwrap();
    let files = vec![from_host(&app, "/srv/app"), from_host(&app.join("run"), "/bin/run")];
    let info = extend(&home, "more", &Additions { files, ..Additions::default() }).await.unwrap();
    assert_eq!((info.config.user.as_str(), info.names.len()), ("app", 1));
    assert_ne!(info.digest, base.digest);
    let image = home.storage.image("more").await.unwrap();
    let Some(found) = extract(&image.path) else { return };
    let root = found.path().join("root");
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.join(name)).unwrap().permissions()) & 0o777
    };
    assert_eq!(fs::read(root.join("etc/name")).unwrap(), b"value");
    assert_eq!(fs::read(root.join("srv/app/link")).unwrap(), vec![7; 100_000]);
    assert_eq!((mode("srv/app/run"), mode("bin/run")), (0o755, 0o755));
    // The base is as it was.
    assert_eq!(home.storage.image("base").await.unwrap().info.digest, base.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_removes_and_replaces() {
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    for name in ["a/gone", "a/kept", "b/old", "c"] {
        file(&mut tar, name, name.as_bytes());
    }
    home.add_bytes("base", &tar.into_inner().unwrap()).await.unwrap();
    let mut layer = Builder::new(Vec::new());
    file(&mut layer, "a/.wh.gone", b"");
    file(&mut layer, "b/.wh..wh..opq", b"");
    file(&mut layer, "b/new", b"new");
    entry(&mut layer, EntryType::Regular, b"c", b"", b"changed");
    let bytes = Bytes::from(layer.into_inner().unwrap());
    let data = Box::pin(futures::stream::once(async move { Ok(bytes) }));
    let (storage, config) = (&home.storage, ImageConfig::default());
    storage.add_layer("top", "base", "a layer", &config, data, Progress::ignored()).await.unwrap();
    let image = storage.image("top").await.unwrap();
    assert_eq!(image.info.source, "a layer");
    let Some(found) = extract(&image.path) else { return };
    let root = found.path().join("root");
    assert!(!root.join("a/gone").exists() && !root.join("b/old").exists());
    for (name, content) in [("a/kept", "a/kept"), ("b/new", "new"), ("c", "changed")] {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_additions_are_found_before_anything_is_read() {
    let home = Home::new();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let app = home.path("app");
    fs::create_dir(&app).unwrap();
    let with_mode = RecipeFile { mode: Some("0755".to_owned()), ..from_host(&app, "/app") };
    for (additions, part) in [
        (Additions { packages: words(&["-o=x"]), ..Additions::default() }, "-o=x"),
        (Additions { packages: words(&["git", "a b"]), ..Additions::default() }, "a b"),
        (Additions { pip: words(&["--index-url=x"]), ..Additions::default() }, "--index-url"),
        (Additions { pip: words(&["./local"]), ..Additions::default() }, "./local"),
        (Additions { npm: words(&["/etc"]), ..Additions::default() }, "/etc"),
        (Additions { files: vec![from_host(&home.path("none"), "/x")], ..Additions::default() }, "none"),
        (Additions { files: vec![from_host(&app, "app")], ..Additions::default() }, "absolute"),
        (Additions { files: vec![with_mode], ..Additions::default() }, "is a folder"),
    ] {
        let refused = home.storage.check_additions(&additions).await.unwrap_err();
        assert!(matches!(refused, StorageError::BadInput { .. }));
        assert!(refused.to_string().contains(part), "{refused}");
    }
    home.add_bytes("base", &small_tar()).await.unwrap();
    for (additions, part) in [
        (Additions { packages: words(&["git"]), ..Additions::default() }, "dpkg"),
        (Additions { pip: words(&["requests"]), ..Additions::default() }, "python3"),
        (Additions { npm: words(&["cowsay"]), ..Additions::default() }, "node"),
    ] {
        let refused = extend(&home, "x", &additions).await.unwrap_err();
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_entry_that_was_cut_or_whose_image_is_gone_is_none() {
    let home = Home::new();
    let app = home.path("app");
    fs::create_dir(&app).unwrap();
    fs::write(app.join("x"), "1").unwrap();
    let files = [from_host(&app, "/app")];
    let key = home.storage.build_key("text", &files, &[]).await.unwrap();
    assert_eq!(home.storage.build_key("text", &files, &[]).await.unwrap(), key);
    assert_ne!(home.storage.build_key("other", &files, &[]).await.unwrap(), key);
    fs::write(app.join("x"), "2").unwrap();
    assert_ne!(home.storage.build_key("text", &files, &[]).await.unwrap(), key);
    let image = home.add_bytes("base", &small_tar()).await.unwrap();
    assert_eq!(home.storage.cached_build(&key).await.unwrap(), None);
    home.storage.remember_build(&key, &image.digest).await.unwrap();
    assert_eq!(home.storage.cached_build(&key).await.unwrap(), Some(image.digest.clone()));
    let path = home.path("store/images/builds").join(&key);
    let whole = fs::read(&path).unwrap();
    for length in [0, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(home.storage.cached_build(&key).await.unwrap(), None, "{length} bytes");
    }
    // A new build replaces what was cut.
    home.storage.remember_build(&key, &image.digest).await.unwrap();
    assert_eq!(home.storage.cached_build(&key).await.unwrap(), Some(image.digest));
    home.storage.remove_image("base", &[]).await.unwrap();
    assert_eq!(home.storage.cached_build(&key).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_leaves_the_name_and_no_rest() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount("24m");
    let root = Utf8Path::from_path(disk.path()).unwrap().to_owned();
    let storage = open(root.join("store"), ArchiveLimits::default()).unwrap();
    let home = Home { directory: tempfile::tempdir().unwrap(), storage };
    home.add_bytes("base", &small_tar()).await.unwrap();
    let large = home.path("large");
    fs::write(&large, vec![1; 40 << 20]).unwrap();
    let files = vec![from_host(&large, "/large")];
    let refused = extend(&home, "base", &Additions { files, ..Additions::default() }).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::DiskFull { .. } | StorageError::OverDiskLimit { .. }),
        "{refused}"
    );
    let left: Vec<_> = fs::read_dir(root.join("store/tmp"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".gate")
        .collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
    assert_eq!(home.storage.images().await.unwrap().found.len(), 1);
    assert_eq!(home.storage.image("base").await.unwrap().info.config.user, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_name_is_of_the_same_image() {
    let home = Home::new();
    let image = home.add_bytes("base", &small_tar()).await.unwrap();
    let named = home.storage.name_image("base", "other").await.unwrap();
    assert_eq!((named.digest, named.names), (image.digest, vec!["base".to_owned(), "other".to_owned()]));
    home.storage.name_image("nothing", "x").await.unwrap_err();
    home.storage.name_image("base", "../x").await.unwrap_err();
}
