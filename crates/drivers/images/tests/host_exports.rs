//! Exported images as podman, skopeo and umoci read them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use common::{Home, entry, file};
use futures::StreamExt as _;
use microvm_ports::storage::{ImageConfig, ImageSource};
use microvm_ports::{ImageStore as _, Progress};
use serde_json::Value;
use tar::{Builder, EntryType, Header};

/// Reads an archive in every way that these programs know.
const SCRIPT: &str = r#"
set -e
cd "$1"
export CONTAINERS_STORAGE_CONF=$1/storage.conf
printf '[storage]\ndriver = "vfs"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$1" "$1" > storage.conf
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > policy.json
skopeo --policy policy.json copy -q docker-archive:x.tar oci:from-docker:1.2
skopeo --policy policy.json copy -q oci-archive:x.tar:1.2 oci:from-oci:1.2
skopeo inspect --config oci:from-oci:1.2 > config.json
umoci unpack --image from-oci:1.2 bundle > /dev/null
podman --storage-driver vfs load -q --signature-policy policy.json -i x.tar > loaded
name=$(sed -n '1s/.*: //p' loaded)
podman --storage-driver vfs save -q --format docker-archive -o podman.tar $name
podman --storage-driver vfs image inspect $name > inspected.json
"#;

#[tokio::test]
async fn other_programs_read_an_exported_image() {
    for tool in ["podman", "skopeo", "umoci"] {
        if !rustix::process::geteuid().is_root() || Command::new(tool).arg("--version").output().is_err() {
            println!("SKIPPED: needs root and the packages podman, skopeo and umoci");
            return;
        }
    }
    let home = Home::new();
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "bin/tool", b"tool");
    entry(&mut tar, EntryType::Link, b"bin/hard", b"bin/tool", b"");
    entry(&mut tar, EntryType::Symlink, b"bin/link", b"tool", b"");
    tar.append_pax_extensions([("SCHILY.xattr.user.x", &b"value"[..])]).unwrap();
    let mut header = Header::new_ustar();
    header.set_mode(0o4711);
    header.set_uid(1000);
    header.set_gid(70_000);
    header.set_size(3);
    tar.append_data(&mut header, "own", &b"own"[..]).unwrap();
    let mut sparse = vec![0; 4 << 20];
    sparse[3 << 20] = 1;
    file(&mut tar, "sparse", &sparse);
    let path = home.path("source");
    std::fs::write(&path, tar.into_inner().unwrap()).unwrap();
    let config = ImageConfig {
        environment: [("WHO".to_owned(), "one".to_owned())].into(),
        user: "1000".to_owned(),
        working_directory: "/bin".to_owned(),
        entrypoint: vec!["/bin/tool".to_owned()],
        command: vec!["a".to_owned()],
        labels: [("title".to_owned(), "tool".to_owned())].into(),
    };
    let source = ImageSource::Path { path };
    let info = home.storage.add_image("tool:1.2", &source, &[], &config, Progress::ignored()).await.unwrap();

    let work = home.path("work");
    std::fs::create_dir(&work).unwrap();
    let (mut stream, mut archive) = (home.storage.export_image("tool:1.2").await.unwrap(), Vec::new());
    while let Some(part) = stream.next().await {
        archive.extend_from_slice(&part.unwrap());
    }
    std::fs::write(work.join("x.tar"), archive).unwrap();
    let output = Command::new("bash").args(["-c", SCRIPT, "-", work.as_str()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // What they wrote again is the same image.
    for form in ["from-docker", "from-oci", "podman.tar"] {
        let again = home.add_path("again", &work.join(form)).await.unwrap();
        assert_eq!(again.digest, info.digest, "{form}");
    }
    let json =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(work.join(name)).unwrap()).unwrap() };
    let (oci, podman) = (json("config.json"), json("inspected.json"));
    for found in [&oci["config"], &podman[0]["Config"]] {
        assert_eq!(found["User"], "1000", "{found}");
        assert_eq!(found["WorkingDir"], "/bin");
        assert_eq!(found["Entrypoint"][0], "/bin/tool");
        assert_eq!(found["Cmd"][0], "a");
        assert_eq!(found["Env"][0], "WHO=one");
        assert_eq!(found["Labels"]["title"], "tool");
    }
    let root = work.join("bundle/rootfs");
    let own = std::fs::metadata(root.join("own")).unwrap();
    assert_eq!((own.uid(), own.gid(), own.permissions().mode() & 0o7777), (1000, 70_000, 0o4711));
    let (tool, hard) = (
        std::fs::metadata(root.join("bin/tool")).unwrap(),
        std::fs::metadata(root.join("bin/hard")).unwrap(),
    );
    assert_eq!(tool.ino(), hard.ino());
    assert_eq!(std::fs::read(root.join("sparse")).unwrap(), sparse);
    let mut value = [0; 16];
    let length = rustix::fs::lgetxattr(root.join("own").as_std_path(), "user.x", &mut value[..]);
    // Not every file system has attributes of users.
    if let Ok(length) = length {
        assert_eq!(&value[..length], b"value");
    }
}
