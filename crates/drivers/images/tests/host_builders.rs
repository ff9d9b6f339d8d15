//! The same image as buildah, podman, skopeo and umoci really write it, in every form they know.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use common::Home;
use microvm_ports::ImageStore as _;

#[tokio::test]
async fn images_of_real_builders_are_all_the_same() {
    for tool in ["buildah", "podman", "skopeo", "umoci"] {
        if !rustix::process::geteuid().is_root() || Command::new(tool).arg("--version").output().is_err() {
            println!("SKIPPED: needs root and the packages buildah, podman, skopeo and umoci");
            return;
        }
    }
    let home = Home::new();
    let work = home.path("work");
    std::fs::create_dir(&work).unwrap();
    let script = home.path("builders.sh");
    std::fs::write(&script, include_str!("common/builders.sh")).unwrap();
    let output = Command::new("bash").args([&script, &work]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let expected = home.add_path("expected", &work.join("buildah-oci")).await.unwrap();
    let config = &expected.config;
    assert_eq!((config.user.as_str(), config.working_directory.as_str()), ("1000", "/etc"));
    assert_eq!(
        (&config.entrypoint[..], &config.command[..]),
        (&["/bin/tool".into()][..], &["a".into(), "b".into()][..])
    );
    assert_eq!(config.environment["WHO"], "one");
    for form in [
        "buildah-oci:1",
        "buildah-oci.tar",
        "buildah-docker.tar",
        "podman-docker.tar",
        "podman-oci.tar",
        "podman-oci",
        "podman-dir",
        "podman-multi.tar:real:1",
        "skopeo-dir",
        "skopeo-docker.tar",
        "skopeo-docker.tar:real:1",
        "skopeo-oci.tar",
        "skopeo-two:v1",
        "skopeo-zstd",
        "umoci-re:1",
        "umoci-re:2",
    ] {
        let added =
            home.add_path("x", &work.join(form)).await.unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(added.digest, expected.digest, "{form}: {added:?}");
    }
    for (form, part) in [
        ("podman-multi.tar", "`localhost/base:1`, `localhost/real:1`"),
        ("umoci-re", "`1`, `2`"),
        ("skopeo-two:v2", "it has `v1`"),
        ("bundle", "`rootfs`"),
    ] {
        let error = home.add_path("x", &work.join(form)).await.expect_err(form).to_string();
        assert!(error.contains(part), "{form}: {error}");
    }
    let image = home.storage.image("expected").await.unwrap().path;
    let root = home.path("root");
    std::fs::create_dir(&root).unwrap();
    // fsck.erofs, which other tests extract with, changes owners last and loses the bits for other users.
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).args([&image, &root]).output();
    let mounted = mounted.unwrap();
    if !mounted.status.success() {
        println!("SKIPPED: the content: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let found = std::panic::catch_unwind(|| check(&root));
    assert!(Command::new("umount").arg(&root).status().unwrap().success());
    if let Err(panic) = found {
        std::panic::resume_unwind(panic);
    }
}

fn check(root: &camino::Utf8Path) {
    let one = std::fs::metadata(root.join("etc/one")).unwrap();
    assert_eq!((one.uid(), one.gid()), (1000, 70_000));
    assert_eq!(std::fs::read(root.join("etc/hard")).unwrap(), b"one\n");
    assert_eq!(std::fs::read(root.join("etc/two")).unwrap(), b"two\n");
    assert_eq!(std::fs::metadata(root.join("bin/tool")).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(std::fs::metadata(root.join("empty")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert!(std::fs::symlink_metadata(root.join("etc/gone")).is_err() && root.join("etc/link").is_symlink());
}
