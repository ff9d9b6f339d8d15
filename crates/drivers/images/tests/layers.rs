//! Layers and tars in the ways of those who pack them: kaniko, ko, bazel, nix, pzstd, GNU tar.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Command;

use common::{Home, entry, extract, file, sha256};
use microvm_ports::ImageStore as _;
use microvm_ports::StorageError;
use tar::{Builder, EntryType, Header};

/// A `docker save` archive with these layers, packed or not; `plain` are the same unpacked.
fn saved(packed: &[Vec<u8>], plain: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = plain.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let names: Vec<String> = (0..packed.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": names}]);
    let config = serde_json::json!({"config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "manifest.json", manifest.to_string().as_bytes());
    file(&mut tar, "c.json", config.to_string().as_bytes());
    for (name, layer) in names.iter().zip(packed) {
        file(&mut tar, name, layer);
    }
    tar.into_inner().unwrap()
}

fn layer(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let (link, content) = if kind.is_file() { ("", *text) } else { (*text, "") };
        entry(&mut tar, *kind, name.as_bytes(), link.as_bytes(), content.as_bytes());
    }
    tar.into_inner().unwrap()
}

fn refused(result: Result<impl std::fmt::Debug, StorageError>, part: &str) {
    match result {
        Err(StorageError::BadInput { detail, .. }) => assert!(detail.contains(part), "{detail}"),
        other => panic!("{part}: {other:?}"),
    }
}

#[tokio::test]
async fn entries_in_any_order_and_twice_mean_what_they_mean_to_docker() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let home = Home::new();
    let first = layer(&[
        (Regular, "a", "a"),
        (Regular, "o/old", "old"),
        (Regular, "d/old", "old"),
        (Symlink, "l", "d"),
        (Regular, "w/kept", "old"),
        (Regular, "dir/in", "in"),
    ]);
    // Files before their directories, names in three forms, whiteouts behind what takes the place of the old.
    let second = layer(&[
        (Link, "o/b", "a"),
        (Regular, "o/new", "new"),
        (Regular, "o/.wh..wh..opq", ""),
        (Link, "w/kept", "/a"),
        (Regular, "w/.wh.kept", ""),
        (Regular, "./twice", "one"),
        (Regular, "/twice", "two"),
        (Regular, "deep/er/file", "deep"),
        (Directory, "deep/er/", ""),
        (Directory, "deep/", ""),
        (Regular, "l/through", "through"),
        (Regular, ".wh.gone", ""),
        (Regular, "dir", "a file now"),
    ]);
    let layers = [first, second];
    home.add_bytes("x", &saved(&layers, &layers)).await.unwrap();
    let Some(tree) = extract(&home.storage.image("x").await.unwrap().path) else { return };
    let root = tree.path().join("root");
    let text = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    for (name, expected) in [
        ("o/b", Some("a")),
        ("o/new", Some("new")),
        ("o/old", None),
        ("w/kept", Some("a")),
        ("twice", Some("two")),
        ("deep/er/file", Some("deep")),
        ("d/through", Some("through")),
        ("d/old", Some("old")),
        ("dir", Some("a file now")),
    ] {
        assert_eq!(text(name).as_deref(), expected, "{name}");
    }
    assert_eq!(std::fs::metadata(root.join("deep")).unwrap().permissions().mode() & 0o7777, 0o755);
    // What a hard link leads to comes before it, as for every tar.
    let late = [layer(&[(Link, "b", "a"), (Regular, "a", "a")])];
    refused(home.add_bytes("y", &saved(&late, &late)).await, "not in the archive before it");
}

#[tokio::test]
async fn layers_that_begin_with_a_frame_without_data_are_zstd() {
    let home = Home::new();
    let plain = [layer(&[(EntryType::Regular, "a", "a")])];
    let frame = |bytes: &[u8]| {
        let packed = zstd::encode_all(bytes, 1).unwrap();
        let length = u32::try_from(packed.len()).unwrap().to_le_bytes();
        [b"\x50\x2a\x4d\x18\x04\0\0\0", &length[..], &packed[..]].concat()
    };
    let (one, two) = plain[0].split_at(512);
    let packed = [[frame(one), frame(two)].concat()];
    let expected = home.add_bytes("plain", &saved(&plain, &plain)).await.unwrap();
    let added = home.add_bytes("packed", &saved(&packed, &plain)).await.unwrap();
    assert_eq!(added.digest, expected.digest);
}

#[tokio::test]
async fn owners_that_no_file_system_has_are_not_made_root() {
    let home = Home::new();
    let of = |key: &str, number: &str| {
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions([(key, number.as_bytes())]).unwrap();
        file(&mut tar, "a", b"a");
        tar.into_inner().unwrap()
    };
    for key in ["uid", "gid"] {
        refused(home.add_bytes("x", &of(key, "4294967296")).await, "4294967296, which is no user or group");
        refused(home.add_bytes("x", &of(key, "4294967295")).await, "4294967295, which is no user or group");
        home.add_bytes("x", &of(key, "4294967294")).await.unwrap();
    }
}

#[tokio::test]
async fn names_as_long_as_nix_and_bazel_make_them_are_kept() {
    let home = Home::new();
    let (name, target) = (format!("{}/f", vec!["d".repeat(200); 18].join("/")), "t".repeat(4000));
    let mut tar = Builder::new(Vec::new());
    let comment = "c".repeat(100_000);
    let records = [("path", name.as_str()), ("comment", &comment)];
    tar.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
    file(&mut tar, "short", b"long");
    tar.append_pax_extensions([("linkpath", target.as_bytes())]).unwrap();
    entry(&mut tar, EntryType::Symlink, b"link", b"short", b"");
    let layers = [tar.into_inner().unwrap()];
    home.add_bytes("x", &saved(&layers, &layers)).await.unwrap();
    let Some(tree) = extract(&home.storage.image("x").await.unwrap().path) else { return };
    let link = std::fs::read_link(tree.path().join("root/link")).unwrap();
    assert_eq!(link.to_str().unwrap(), target);
    let mut at = tree.path().join("root");
    while let Some(below) = std::fs::read_dir(&at)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.ends_with("d".repeat(200)))
    {
        at = below;
        if at.as_os_str().len() > 3000 {
            break;
        }
    }
    assert!(at.as_os_str().len() > 3000, "{}", at.display());
}

/// A tree of sparse files, packed by GNU tar.
fn packed(home: &Home, options: &[&str]) -> Option<Vec<u8>> {
    let tar = Command::new("tar")
        .args(["--sort=name", "--mtime=@1000000000", "--owner=0", "--group=0"])
        .args(options)
        .args(["-cf", "-", "-C", home.path("source").as_str(), "."])
        .output()
        .unwrap();
    if !tar.status.success() {
        println!("SKIP: tar is not GNU tar: {}", String::from_utf8_lossy(&tar.stderr));
        return None;
    }
    Some(tar.stdout)
}

#[tokio::test]
async fn sparse_files_of_every_form_of_tar_are_the_same_files() {
    let home = Home::new();
    std::fs::create_dir(home.path("source")).unwrap();
    let make = |name: &str, length: u64, parts: &[(u64, usize)]| {
        let file = std::fs::File::create(home.path("source").join(name)).unwrap();
        file.set_len(length).unwrap();
        for (place, size) in parts {
            file.write_all_at(&vec![7; *size], *place).unwrap();
        }
    };
    make("hole", 1 << 20, &[]);
    make("begin", 2 << 20, &[(0, 5000)]);
    make("middle", (2 << 20) + 77, &[(1 << 20, 70_000)]);
    make("end", (1 << 20) + 3, &[(1 << 20, 3)]);
    make("many", 10 << 20, &(0..150).map(|at| (at << 16, 4096)).collect::<Vec<_>>());
    make(&"n".repeat(150), 1 << 20, &[(512 << 10, 4096)]);
    let Some(whole) = packed(&home, &["--format=posix"]) else { return };
    let expected = home.add_bytes("whole", &whole).await.unwrap().digest;
    for options in [
        &["--hole-detection=seek", "--format=gnu"][..],
        &["--hole-detection=seek", "--format=posix", "--sparse-version=0.0"],
        &["--hole-detection=seek", "--format=posix", "--sparse-version=0.1"],
        &["--hole-detection=seek", "--format=posix", "--sparse-version=1.0"],
    ] {
        let bytes = packed(&home, options).unwrap();
        assert!(bytes.len() < whole.len() / 4, "{options:?}: {} bytes are not sparse", bytes.len());
        let added = home.add_bytes("x", &bytes).await.unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(added.digest, expected, "{options:?}");
    }
    // A map that does not fit its data.
    for (map, part) in
        [("0,600", "less data"), ("0,100", "more data"), ("9000,512", "overlap"), ("0", "half a part")]
    {
        let mut tar = Builder::new(Vec::new());
        let records = [("GNU.sparse.size", "9000"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", map)];
        tar.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(512);
        header.set_mode(0o644);
        tar.append_data(&mut header, "GNUSparseFile.1/x", &[1; 512][..]).unwrap();
        refused(home.add_bytes("bad", &tar.into_inner().unwrap()).await, part);
    }
}
