//! Identity of images: equal files and equal configuration make two images one.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use common::{Home, sha256, small_tar};
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource};
use microvm_ports::{ImageStore, Progress, StorageError};

async fn add(home: &Home, name: &str, user: &str) -> ImageInfo {
    let path = home.path("archive");
    std::fs::write(&path, small_tar()).unwrap();
    let config = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
    let source = ImageSource::Path { path };
    home.storage.add_image(name, &source, &[], &config, Progress::ignored()).await.unwrap()
}

async fn inode(home: &Home, reference: &str) -> (u64, u64) {
    let file = std::fs::metadata(home.storage.image(reference).await.unwrap().path).unwrap();
    (file.ino(), file.nlink())
}

/// Makes of the image `name` what older versions stored: its digest is that of its files. Returns the digest.
async fn as_an_older_version(home: &Home, name: &str) -> String {
    let found = home.storage.image(name).await.unwrap();
    let files = sha256(&std::fs::read(&found.path).unwrap());
    let images = home.path("store/images");
    std::fs::rename(images.join(&found.info.digest[7..]), images.join(&files)).unwrap();
    let body = format!(r#"{{"sha256":"{files}"}}"#);
    let sum = sha256(format!("1\n{body}").as_bytes());
    let text = format!(r#"{{"format_version":1,"sha256":"{sum}","body":{body}}}"#);
    std::fs::write(images.join("names").join(name), text).unwrap();
    format!("sha256:{files}")
}

#[tokio::test]
async fn equal_files_are_one_file_of_two_images() {
    let home = Home::new();
    let first = add(&home, "first", "1000:1000").await;
    let second = add(&home, "second", "").await;
    assert_ne!(first.digest, second.digest);
    for reference in ["first", &first.digest] {
        assert_eq!(home.storage.image(reference).await.unwrap().info.config.user, "1000:1000");
    }
    assert_eq!(inode(&home, "first").await, inode(&home, "second").await);
    assert_eq!(inode(&home, "first").await.1, 2);
    // Removing one frees nothing that the other has.
    let before = home.storage.image("first").await.unwrap().info.size;
    home.storage.remove_image("second", &[]).await.unwrap();
    assert_eq!(inode(&home, "first").await.1, 1);
    assert_eq!(home.storage.image("first").await.unwrap().info.size, before);
    // The same again is the same.
    assert_eq!(add(&home, "again", "1000:1000").await.digest, first.digest);
    assert!(home.work().is_empty());
}

#[tokio::test]
async fn a_damaged_file_is_never_shared_and_heals() {
    let home = Home::new();
    let first = add(&home, "first", "1000").await;
    let path = home.storage.image("first").await.unwrap().path;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 8], first.size / 2).unwrap();
    assert!(matches!(home.storage.image("first").await, Err(StorageError::Damaged { .. })));
    add(&home, "second", "").await;
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
    assert_eq!(home.storage.image("first").await.unwrap().info.config.user, "1000");
    // With its file gone it heals as well.
    std::fs::remove_file(&path).unwrap();
    add(&home, "third", "3").await;
    home.storage.image("first").await.unwrap();
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
}

#[tokio::test]
async fn images_of_older_versions_keep_their_digest_and_configuration() {
    let home = Home::new();
    add(&home, "old", "1000").await;
    let digest = as_an_older_version(&home, "old").await;
    let in_use = std::slice::from_ref(&digest);
    let found = home.storage.image("old").await.unwrap();
    assert_eq!((&found.info.digest, found.info.config.user.as_str()), (&digest, "1000"));
    assert!(home.storage.verify_all(Progress::ignored()).await.unwrap().is_empty());
    assert!(matches!(home.storage.remove_image("old", in_use).await, Err(StorageError::InUse { .. })));

    // Equal files again: with another configuration, and with the same.
    let other = add(&home, "other", "").await;
    let new = add(&home, "old", "1000").await;
    assert!(new.digest != digest && other.digest != digest && new.digest != other.digest);
    home.storage.collect_garbage(in_use).await.unwrap();
    let kept = home.storage.image(&digest).await.unwrap().info;
    assert_eq!((kept.config.user.as_str(), kept.names.len()), ("1000", 0));

    // Without the old image its digest means one with these files, if there is only one.
    home.storage.collect_garbage(&[]).await.unwrap();
    let error = home.storage.image(&digest).await.unwrap_err().to_string();
    assert!(error.contains(&new.digest) && error.contains(&other.digest), "{error}");
    for name in ["other", "old"] {
        assert!(matches!(home.storage.remove_image(name, in_use).await, Err(StorageError::InUse { .. })));
    }
    home.storage.remove_image("other", &[]).await.unwrap();
    assert_eq!(home.storage.image(&digest).await.unwrap().info.digest, new.digest);
    assert!(matches!(home.storage.remove_image("old", in_use).await, Err(StorageError::InUse { .. })));
}
