//! Shared folders on fakes: admitted, told to machine and guest, and never branched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_core::{CreateRequest, ForkRequest, SnapshotFilter, SnapshotRequest};
use microvm_driver_fake::Operation;
use microvm_ports::storage::KernelSource;
use microvm_ports::{KernelStore as _, Progress};
use microvm_types::files::FileKind;
use microvm_types::vm::{Limits, NewVm, Origin};
use microvm_types::{OperationName, Phase, Share, VmRef};
use support::{Host, code, named, say};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

/// A host whose default kernel can mount folders.
fn host() -> Host {
    let host = Host::with_golden();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let build = host.storage.add_kernel("built", &KernelSource::Build, Progress::ignored());
    runtime.block_on(build).unwrap();
    host
}

fn sharing(name: &str, source: &std::path::Path, target: &str) -> CreateRequest {
    let mut request = named(name);
    let source = source.to_str().unwrap().to_owned();
    request.overrides.shares = vec![Share { source, target: target.to_owned(), read_only: false }];
    request
}

#[test]
fn machine_and_guest_are_told_of_the_real_folder() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().canonicalize().unwrap().join("a,b=c");
    std::fs::create_dir(&real).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let host = host();
    let server = host.serve();
    server.run(async {
        let made = server.service.vms.create(sharing("dev", &link, "/mnt/data")).await.unwrap().record;
        assert_eq!(made.template.shares[0].source, real.to_str().unwrap());
        // A golden snapshot cannot hold it.
        assert_eq!(made.origin, Origin::Boot);
        let machine = host.hypervisor.machines().remove(&made.id).unwrap();
        assert_eq!(machine.shares.len(), 1);
        assert_eq!((machine.shares[0].source.as_std_path(), machine.shares[0].read_only), (&*real, false));
        let guest = server.service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.unwrap();
        assert_eq!(guest.stat(b"/mnt/data").await.unwrap().kind, FileKind::Directory);
        drop(guest);
        // It comes back with every boot.
        server.service.vms.stop(&vm("dev"), false, None).await.unwrap();
        server.service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(host.hypervisor.machines()[&made.id].shares.len(), 1);
        // A place that leads elsewhere now is not followed, one that is gone is named.
        server.service.vms.stop(&vm("dev"), true, None).await.unwrap();
        std::fs::remove_dir(&real).unwrap();
        assert_eq!(code(server.service.vms.start(&vm("dev")).await), "bad_input");
        std::os::unix::fs::symlink("/etc", &real).unwrap();
        let error = server.service.vms.start(&vm("dev")).await.unwrap_err();
        assert!(error.to_string().contains("link to `/etc`"), "{error}");
        std::fs::remove_file(&real).unwrap();
        std::fs::create_dir(&real).unwrap();
        server.service.vms.start(&vm("dev")).await.unwrap();
        server.service.vms.delete(&vm("dev"), false).await.unwrap();
    });
}

#[test]
fn what_cannot_be_shared_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let host = host();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let refused = async |request| code(service.vms.create(request).await);
        assert_eq!(refused(sharing("a", &folder.path().join("missing"), "/data")).await, "bad_input");
        assert_eq!(refused(sharing("a", &file, "/data")).await, "bad_input");
        assert_eq!(refused(sharing("a", "relative".as_ref(), "/data")).await, "invalid_field");
        assert_eq!(refused(sharing("a", folder.path(), "/proc/data")).await, "invalid_field");
        let mut twice = sharing("a", folder.path(), "/data");
        twice.overrides.shares.push(twice.overrides.shares[0].clone());
        assert_eq!(refused(twice).await, "invalid_field");
        let mut many = sharing("a", folder.path(), "/data");
        many.overrides.shares = (0..21)
            .map(|number| Share { target: format!("/data{number}"), ..many.overrides.shares[0].clone() })
            .collect();
        assert_eq!(refused(many).await, "over_limit");
        let mut old = sharing("a", folder.path(), "/data");
        old.overrides.kernel = Some("distribution".to_owned());
        let error = service.vms.create(old).await.unwrap_err();
        assert_eq!(error.code(), "kernel_without_shares");
        assert_eq!(error.remedies(), [microvm_types::Action::BuildKernel.any()]);
        let limits = Limits { hibernate_seconds: Some(60), ..Limits::default() };
        let sleepy = CreateRequest {
            vm: NewVm { limits, ..NewVm::default() },
            ..sharing("a", folder.path(), "/data")
        };
        assert_eq!(refused(sleepy).await, "share_not_branchable");
        host.hypervisor.forget_sharing();
        assert_eq!(refused(sharing("a", folder.path(), "/data")).await, "sharing_unsupported");
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), 0);
    });
    drop(server);
    host.assert_empty("after refusals");
}

#[test]
fn a_vm_with_a_folder_is_never_branched_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let host = host();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(sharing("dev", folder.path(), "/data")).await.unwrap();
        let fork =
            service.branches.fork(&vm("dev"), ForkRequest { count: 2, ..ForkRequest::default() }).await;
        assert_eq!(fork.map(|_| ()).unwrap_err().code(), "share_not_branchable");
        let snapshot =
            service.branches.snapshot(&vm("dev"), SnapshotRequest::default(), Progress::ignored()).await;
        assert_eq!(code(snapshot), "share_not_branchable");
        assert_eq!(code(service.vms.hibernate(&vm("dev")).await), "share_not_branchable");
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Running);
        assert_eq!(say(service, "dev", "echo here").await, "here");
        assert!(service.snapshots.list(&SnapshotFilter::default()).unwrap().is_empty());
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), 1);
        service.vms.delete(&vm("dev"), false).await.unwrap();
    });
}
