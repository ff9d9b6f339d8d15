//! Bad days of snapshots, forks and pools on fakes: many at once, a host without memory, a
//! server that dies while it tidies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, names, restored, snap, vm, vms};
use microvm_core::{RestoreRequest, ServiceError};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::Progress;
use microvm_types::template::DiskFormat;
use microvm_types::{Action, ErrorKind, Phase};
use support::{Host, code, named, say};

#[test]
fn two_restores_and_a_delete_at_once_leave_whole_vms_or_none() {
    // What is slow differs from round to round, so that the delete comes first, in between and last.
    let steps = [
        None,
        Some(Operation::SnapshotSource),
        Some(Operation::CreateFiles),
        Some(Operation::Incoming),
        Some(Operation::RemoveSnapshot),
    ];
    let (mut refused, mut made) = (0, 0);
    for round in 0..30 {
        let host = Host::new();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("dev")).await.unwrap();
            say(service, "dev", "echo kept > /root/note").await;
            snap(service, "dev", "s").await.unwrap();
            if let Some(step) = steps[round % steps.len()] {
                host.storage.script().next(step, Fault::Fail);
                host.hypervisor.script().next(step, Fault::Fail);
            }
            let rest = async |turns: usize| {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            let one = service.branches.restore("s", restored("one"));
            let two = async {
                rest(round % 7).await;
                service.branches.restore("s", restored("two")).await
            };
            let delete = async {
                rest(round * 3 % 11).await;
                service.snapshots.remove("s", false).await
            };
            let (one, two, deleted) = tokio::join!(one, two, delete);
            for (name, outcome) in [("one", one), ("two", two)] {
                match outcome {
                    Ok(vms) => {
                        assert_eq!(vms[0].record.name.as_str(), name);
                        assert_eq!(say(service, name, "cat /root/note").await, "kept", "round {round}");
                        made += 1;
                    }
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        assert!(service.vms.get(&vm(name)).is_err(), "{name} is half there: {error}");
                        refused += 1;
                    }
                }
            }
            host.clear_faults();
            if deleted.is_err() {
                service.snapshots.remove("s", false).await.unwrap();
            }
            assert_eq!(names(service), [""; 0]);
            assert_eq!(code(service.branches.restore("s", restored("late")).await), "snapshot_not_found");
            for name in vms(service) {
                service.vms.delete(&vm(&name), false).await.unwrap();
            }
        });
        drop(server);
        host.assert_empty(&format!("after round {round}"));
    }
    assert!(refused > 0 && made > 0, "{refused} refused, {made} made: every round went the same way");
}

#[test]
fn more_forks_than_the_host_has_memory_for_are_refused_before_anything_is_begun() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        snap(service, "dev", "s").await.unwrap();
        host.hypervisor.set_room(Some(200));
        let (branches, launches) = (
            host.hypervisor.script().calls(Operation::Branch),
            host.hypervisor.script().calls(Operation::Launch),
        );
        let error = service.branches.fork(&vm("dev"), forks(900, "try-{n}")).await.unwrap_err();
        assert_eq!(error.kind(), microvm_types::ErrorKind::Exhausted, "{error}");
        assert!(error.to_string().contains("900") && error.to_string().contains("200"), "{error}");
        let many =
            RestoreRequest { count: 900, name: Some("copy-{n}".to_owned()), ..RestoreRequest::default() };
        assert_eq!(
            service.branches.restore("s", many).await.unwrap_err().kind(),
            microvm_types::ErrorKind::Exhausted
        );
        let script = host.hypervisor.script();
        assert_eq!((script.calls(Operation::Branch), script.calls(Operation::Launch)), (branches, launches));
        assert_eq!(vms(service), ["dev"]);
        service.branches.fork(&vm("dev"), forks(3, "try-{n}")).await.unwrap();
        // Gone while they come up: the one that failed is named, the source and what was there before go on.
        host.hypervisor.script().after(Operation::Incoming, 2, Fault::Fail);
        let error = service.branches.fork(&vm("dev"), forks(5, "more-{n}")).await.unwrap_err();
        assert!(matches!(error, ServiceError::Fork { count: 5, number: 1..=5, .. }), "{error}");
        assert_eq!(vms(service).len(), 4, "children of the failed fork are left");
        for name in ["dev", "try-1", "try-2", "try-3"] {
            assert_eq!(say(service, name, "hostname").await, name);
        }
        // None at all: also a pool says so, and lives.
        host.hypervisor.set_room(Some(0));
        assert!(service.branches.fork(&vm("dev"), forks(1, "none")).await.is_err());
        host.hypervisor.set_room(None);
        service.branches.fork(&vm("dev"), forks(1, "again")).await.unwrap();
    });
}

#[test]
fn a_server_that_dies_while_it_prunes_leaves_whole_snapshots() {
    for good in 0..3 {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::new();
            let first = host.serve();
            let service = &first.service;
            first.run(async {
                service.vms.create(named("dev")).await.unwrap();
                for number in 0..5 {
                    say(service, "dev", &format!("echo {number} > /root/note")).await;
                    snap(service, "dev", &format!("s-{number}")).await.unwrap();
                }
            });
            host.storage.script().after(Operation::RemoveSnapshot, good, fault);
            let _ = first.run_a_moment(first.service.snapshots.prune(Some(2), None, true));
            drop(first);
            host.clear_faults();
            let second = host.serve();
            let service = &second.service;
            second.run(async {
                let left = names(service);
                assert!(left.ends_with(&["s-3".to_owned(), "s-4".to_owned()]), "{good} {fault:?}: {left:?}");
                for name in &left {
                    assert_eq!(service.snapshots.verify(name, Progress::ignored()).await.unwrap().damage, []);
                    service.branches.restore(name, restored("copy")).await.unwrap();
                    assert_eq!(format!("s-{}", say(service, "copy", "cat /root/note").await), *name);
                    service.vms.delete(&vm("copy"), false).await.unwrap();
                }
                service.snapshots.prune(Some(0), None, true).await.unwrap();
                assert_eq!(names(service), [""; 0]);
                assert_eq!(say(service, "dev", "cat /root/note").await, "4");
                service.vms.delete(&vm("dev"), false).await.unwrap();
            });
            drop(second);
            host.assert_empty(&format!("after {good} {fault:?}"));
        }
    }
}

#[test]
fn disks_of_the_users_take_part_in_branches() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.img").to_str().unwrap().to_owned();
    std::fs::write(&path, [0; 512]).unwrap();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let mut request = named("dev");
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path }])).unwrap();
        service.vms.create(request).await.unwrap();
        service.branches.fork(&vm("dev"), forks(2, "try-{n}")).await.unwrap();
        snap(service, "dev", "s").await.unwrap();
        service.branches.restore("s", restored("copy")).await.unwrap();
        service.branches.fork(&vm("try-1"), forks(1, "deep")).await.unwrap();
        // A child is stopped and started on its copy, whatever became of the source and of the file.
        let written = host.storage.script().calls(Operation::WriteBack);
        service.vms.stop(&vm("dev"), false, None).await.unwrap();
        assert_eq!(host.storage.script().calls(Operation::WriteBack), written + 1);
        service.vms.start(&vm("dev")).await.unwrap();
        service.vms.delete(&vm("dev"), false).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        for name in ["try-1", "copy", "deep"] {
            service.vms.stop(&vm(name), false, None).await.unwrap();
            service.vms.start(&vm(name)).await.unwrap();
        }
        // What cannot be written back keeps the VM, with the reason.
        host.storage.script().next(Operation::WriteBack, Fault::Fail);
        assert!(service.vms.delete(&vm("deep"), false).await.is_err());
        let failed = service.vms.get(&vm("deep")).unwrap().record;
        assert_eq!(failed.phase(), Phase::Failed);
        assert!(failed.failure.unwrap().contains("could not be deleted"));
        service.snapshots.remove("s", false).await.unwrap();
        for name in vms(service) {
            service.vms.delete(&vm(&name), false).await.unwrap();
        }
        // A qcow2 file is refused before the VM stands still.
        std::fs::write(&path, b"QFI\xfb and so on").unwrap();
        let mut request = named("other");
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path }])).unwrap();
        service.vms.create(request).await.unwrap();
        let branches = host.hypervisor.script().calls(Operation::Branch);
        assert_eq!(code(service.branches.fork(&vm("other"), forks(1, "no")).await), "disk_not_shareable");
        assert_eq!(host.hypervisor.script().calls(Operation::Branch), branches);
        service.vms.delete(&vm("other"), false).await.unwrap();
    });
    drop(server);
    host.assert_empty("after all");
}

#[test]
fn a_guest_cannot_change_what_its_disk_is_taken_for() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.img").to_str().unwrap().to_owned();
    std::fs::write(&path, [0; 512]).unwrap();
    let server = host.serve();
    let service = &server.service;
    let format = |id: &str| {
        let machine =
            host.hypervisor.machines().into_iter().find(|(known, _)| known.as_str() == id).unwrap().1;
        machine.attached.iter().find(|disk| disk.serial == "data").unwrap().format
    };
    server.run(async {
        let mut request = named("dev");
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path }])).unwrap();
        let record = service.vms.create(request).await.unwrap().record;
        assert_eq!(record.template.extra_disks[0].format, Some(DiskFormat::Raw));
        // What a guest can write to its own disk.
        std::fs::write(&path, [b"QFI\xfb".as_slice(), &[0; 508]].concat()).unwrap();
        service.vms.stop(&vm("dev"), false, None).await.unwrap();
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(format(record.id.as_str()), DiskFormat::Raw);
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        snap(service, "dev", "s").await.unwrap();
        service.vms.delete(&vm("child"), false).await.unwrap();
        // Whoever gives the file to another VM can say what it is.
        let mut request = named("other");
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path, "format": "raw" }]))
                .unwrap();
        let other = service.vms.create(request).await.unwrap().record;
        assert_eq!(format(other.id.as_str()), DiskFormat::Raw);
        let mut request = named("wrong");
        std::fs::write(&path, [0; 512]).unwrap();
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path, "format": "qcow2" }]))
                .unwrap();
        assert!(service.vms.create(request).await.unwrap_err().to_string().contains("not a qcow2 file"));
    });
}

#[test]
fn a_sleeping_vm_that_cannot_be_woken_boots_from_its_disk_if_asked() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo kept > /root/note").await;
        service.vms.hibernate(&vm("dev")).await.unwrap();
        host.hypervisor.upgrade("2.0");
        let error = service.vms.start(&vm("dev")).await.unwrap_err();
        assert_eq!(error.code(), "vm_cannot_wake", "{error}");
        assert_eq!(error.remedies(), [microvm_types::Action::StartVmCold.of("dev")]);
        // Nothing was touched: with the old VMM it would still wake.
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Hibernated);
        assert_eq!(code(service.vms.start(&vm("dev")).await), "vm_cannot_wake");
        service.vms.start_cold(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "cat /root/note; hostname").await, "kept\ndev");
        // It sleeps on nothing any more, and can sleep again.
        service.vms.hibernate(&vm("dev")).await.unwrap();
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        service.vms.stop(&vm("dev"), false, None).await.unwrap();
        service.vms.start_cold(&vm("dev")).await.unwrap();
        service.vms.delete(&vm("dev"), false).await.unwrap();
    });
    drop(server);
    host.assert_empty("after all");
}

#[test]
fn a_vm_whose_disk_is_gone_for_good_is_deleted_by_who_gives_it_up() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let mut request = named("dev");
        request.overrides.extra_disks =
            serde_json::from_value(serde_json::json!([{ "name": "data", "path": path }])).unwrap();
        service.vms.create(request).await.unwrap();
        service.vms.stop(&vm("dev"), true, None).await.unwrap();
        host.storage.script().next(Operation::WriteBack, Fault::Fail);
        let error = service.vms.delete(&vm("dev"), false).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("disk_not_written_back", ErrorKind::Conflict));
        assert_eq!(error.remedies(), [Action::ForgetDisks.of("dev")]);
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Failed);
        host.storage.script().next(Operation::WriteBack, Fault::Fail);
        service.vms.delete(&vm("dev"), true).await.unwrap();
        host.assert_empty_in(service);
    });
}
