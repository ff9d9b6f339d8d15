//! Disks of strangers: the VM that reads one has nothing of its user's, and does not live for longer than its work may take.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_core::{ImageBase, ImageRecipe};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::storage::{Additions, ImageConfig, ImageSource};
use microvm_ports::{Progress, VolumeStore as _};
use support::{Host, code, until};

/// A folder with a disk, and the recipe that imports it.
fn disk(name: &str) -> (tempfile::TempDir, ImageRecipe) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().join("disk.qcow2")).unwrap();
    std::fs::write(&path, b"QFI\xfb").unwrap();
    let recipe = ImageRecipe {
        name: name.to_owned(),
        base: ImageBase::Source(ImageSource::Path { path }),
        additions: Additions::default(),
        commands: Vec::new(),
        steps: Vec::new(),
        config: ImageConfig::default(),
        cache: true,
    };
    (folder, recipe)
}

#[test]
fn a_disk_of_a_stranger_meets_nothing_of_the_users_and_is_not_waited_for_without_end() {
    let (folder, recipe) = disk("imported");
    let mut host = Host::new();
    let template = serde_json::json!({
        "name": "linux-default",
        "image": "debian-python",
        "boot_timeout_ms": 2000,
        "memory_mib": 256,
        "environment": { "TOKEN": "secret" },
        "start_commands": ["false"],
        "shares": [{ "source": folder.path(), "target": "/mine", "read_only": false }],
        "volumes": [{ "name": "data", "target": "/data" }],
        "extra_disks": [{ "name": "import", "path": folder.path().join("disk.qcow2"), "format": "qcow2" }],
        "hooks": [{ "at": "before_create", "program": ["/bin/false"] }],
    });
    host.template = serde_json::from_value(template).unwrap();
    host.disk_patience = Duration::from_millis(500);
    let server = host.serve();
    server.run(async {
        host.hypervisor.script().next(Operation::Exec, Fault::Hang);
        let service = server.service.clone();
        let import =
            tokio::spawn(async move { service.catalog.build_image(&recipe, Progress::ignored()).await });
        until("it is looked at", || host.hypervisor.script().calls(Operation::Exec) == 1).await;
        {
            let machines = host.hypervisor.machines();
            let machine = machines.values().next().unwrap();
            assert!(machine.shares.is_empty(), "{:?}", machine.shares);
            let disks: Vec<_> = machine.attached.iter().map(|disk| (&*disk.serial, disk.read_only)).collect();
            assert_eq!(disks, [("image", true), ("scratch", false), ("import", true)]);
        }
        assert!(host.storage.volumes().await.unwrap().found.is_empty(), "no volume is made for it");
        assert_eq!(host.hooks.events(), [""; 0]);
        assert_eq!(code(import.await.unwrap()), "guest_timeout");
        until("its VM is gone", || host.hypervisor.machines().is_empty()).await;
        host.assert_empty_in(&server.service);
    });
}

#[test]
fn a_name_that_no_image_can_have_is_refused_before_a_vm_starts() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let (_folder, recipe) = disk("bad name");
        let refused = server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap_err();
        assert!(refused.to_string().contains("the image name `bad name`"), "{refused}");
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), 0);
    });
}
