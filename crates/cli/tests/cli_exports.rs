//! Archives that the program writes, beside a whole server on fakes. Needs no hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/program.rs"]
mod program;

use std::os::unix::fs::PermissionsExt as _;

use program::{json, must, refused, run, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_to_a_file_or_to_standard_output() {
    let server = service::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let file = path("image.tar");
    assert_eq!(must(&server, &["image", "export", "debian-python", "-o", &file]).await, "");
    let written = std::fs::read(&file).unwrap();
    assert!(!written.is_empty());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for arguments in
        [&["image", "export", "debian-python"][..], &["image", "export", "debian-python", "-o", "-"]]
    {
        assert_eq!(run(&server, arguments).await.stdout, written, "{arguments:?}");
    }
    // What a link leads to is replaced, and not the link; who may read it may do so afterwards.
    std::os::unix::fs::symlink("image.tar", path("link")).unwrap();
    std::fs::write(&file, "before").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let told = json(&server, &["image", "export", "debian-python", "--file", &path("link")]).await;
    assert_eq!(told["bytes"], written.len());
    assert_eq!(std::fs::read(&file).unwrap(), written);
    assert!(std::fs::symlink_metadata(path("link")).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    std::os::unix::fs::symlink("none.tar", path("nowhere")).unwrap();
    let (code, told) = refused(&server, &["image", "export", "debian-python", "-o", &path("nowhere")]).await;
    assert!(code == 101 && told.contains("is a link to a file that is not there"), "{code} {told}");
    std::fs::remove_file(path("nowhere")).unwrap();
    // A device stays one.
    must(&server, &["image", "export", "debian-python", "-o", "/dev/null"]).await;
    let (code, told) = refused(&server, &["image", "export", "debian-python", "-o", &path("")]).await;
    assert!(code == 101 && told.contains("is a directory"), "{code} {told}");
    let (code, told) = refused(&server, &["image", "export", "none", "-o", &path("none.tar")]).await;
    assert!(code == 102 && told.contains("none"), "{code} {told}");
    let (code, told) = refused(&server, &["image", "export", "debian-python", "-o", "/nowhere/x"]).await;
    assert!(code != 0 && told.contains("/nowhere/x"), "{code} {told}");
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["image.tar", "link"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_exported_and_compared() {
    let server = service::start().await;
    must(&server, &["create", "--name", "dev"]).await;
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made");
    std::fs::write(&made, "made").unwrap();
    must(&server, &["cp", made.to_str().unwrap(), "dev:/root/made"]).await;
    let exported = run(&server, &["export", "dev"]).await;
    assert!(exported.status.success());
    assert!(program::text(&exported.stdout).contains("root/made"));
    let lines = must(&server, &["diff", "dev"]).await;
    assert!(lines.lines().any(|line| line == "A /root/made"), "{lines}");
    let changes = json(&server, &["diff", "dev"]).await["changes"].clone();
    assert_eq!(changes.as_array().unwrap().len(), lines.lines().count());
    assert!(
        changes.as_array().unwrap().contains(&serde_json::json!({ "change": "added", "path": "/root/made" }))
    );
    // What is not told of is named, and the result does not count as whole.
    must(&server, &["cp", made.to_str().unwrap(), "dev:/root/.wh.made"]).await;
    for arguments in [&["export", "dev"][..], &["diff", "dev"], &["diff", "dev", "--output", "json"]] {
        let made = run(&server, arguments).await;
        assert_eq!(made.status.code(), Some(1), "{arguments:?}");
        let told = program::text(&made.stderr);
        assert!(told.contains("left out /root/.wh.made"), "{arguments:?}: {told}");
    }
    must(&server, &["stop", "dev"]).await;
    for verb in ["export", "diff"] {
        let (code, told) = refused(&server, &[verb, "dev"]).await;
        assert!(code == 103 && told.contains("microvm start"), "{code} {told}");
        let (code, told) = refused(&server, &[verb, "nobody"]).await;
        assert!(code == 102 && told.contains("nobody"), "{code} {told}");
    }
}
