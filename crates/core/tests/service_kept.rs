//! What somebody wants kept is kept: named snapshots, and the memory of a hibernated VM.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use std::time::Duration;

use microvm_core::{ForkRequest, Services, SnapshotFilter, SnapshotRequest, VmFilter};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::{Progress, SnapshotStore as _, StateStore as _};
use microvm_types::vm::Rest;
use microvm_types::{Phase, VmRef};
use support::{Host, named, say, until};

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

async fn snap(service: &Services, name: Option<&str>) {
    let name = name.map(|name| name.parse().unwrap());
    let request = SnapshotRequest { name, ..SnapshotRequest::default() };
    service.branches.snapshot(&dev(), request, Progress::ignored()).await.unwrap();
}

fn names(service: &Services) -> Vec<String> {
    let all = service.snapshots.list(&SnapshotFilter::default()).unwrap();
    all.into_iter().map(|one| one.record.name.to_string()).collect()
}

#[test]
fn limits_by_count_and_age_spare_what_somebody_named() {
    let host = Host { named_limit: None, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for number in 0..12 {
            snap(service, Some(&format!("s-{number}"))).await;
            snap(service, None).await;
        }
        let kept = names(service);
        assert_eq!(kept.iter().filter(|name| name.starts_with("s-")).count(), 12, "{kept:?}");
        assert_eq!(kept.iter().filter(|name| name.starts_with("dev-")).count(), 10, "{kept:?}");
        host.clock.advance(3_600_000);
        let removed = service.snapshots.prune(Some(3), None, false).await.unwrap().removed;
        assert_eq!(removed.len(), 7);
        let removed =
            service.snapshots.prune(None, Some(Duration::from_secs(60)), false).await.unwrap().removed;
        assert_eq!(removed.len(), 3);
        assert_eq!(names(service), (0..12).map(|number| format!("s-{number}")).collect::<Vec<_>>());
        assert_eq!(service.snapshots.prune(Some(1), None, true).await.unwrap().removed.len(), 11);
    });
}

#[test]
fn a_hibernated_vm_says_so_also_one_that_an_older_version_called_stopped() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo dream > /root/note").await;
        let view = service.vms.hibernate(&dev()).await.unwrap();
        assert_eq!(view.record.phase(), Phase::Hibernated);
        assert_eq!(
            service.vms.hibernate(&dev()).await.unwrap().record.phase(),
            Phase::Hibernated,
            "twice is fine"
        );
        assert_eq!(service.vms.stop(&dev(), false, None).await.unwrap().record.phase(), Phase::Hibernated);
        let stopped = VmFilter { phases: vec![Phase::Stopped], ..VmFilter::default() };
        assert!(
            service.vms.list(&stopped).unwrap().is_empty(),
            "whoever deletes what is stopped would delete it"
        );
        let mut record = service.vms.get(&dev()).unwrap().record;
        // As versions before the phase `hibernated` stored it.
        let mut life = serde_json::to_value(&record.life).unwrap();
        life["phase"] = "stopped".into();
        record.life = serde_json::from_value(life).unwrap();
        host.store.update_vm(&record).await.unwrap();
    });
    drop(server);
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let record = service.vms.get(&dev()).unwrap().record;
        assert_eq!(record.phase(), Phase::Hibernated);
        assert!(matches!(record.life.rest(), Some(Rest::Asleep { .. })));
        assert_eq!(say(service, "dev", "cat /root/note").await, "dream");
        assert_eq!(service.vms.get(&dev()).unwrap().record.phase(), Phase::Running);
        service.vms.hibernate(&dev()).await.unwrap();
        service.vms.delete(&dev(), false).await.unwrap();
    });
    drop(server);
    host.assert_empty("after a hibernated VM was deleted");
}

#[test]
fn a_snapshot_that_cannot_be_read_is_told_and_removed_by_its_id() {
    let host = Host { named_limit: None, ..Host::new() };
    let first = host.serve();
    let ids: Vec<_> = first.run(async {
        first.service.vms.create(named("dev")).await.unwrap();
        for name in ["one", "two"] {
            snap(&first.service, Some(name)).await;
        }
        let all = first.service.snapshots.list(&SnapshotFilter::default()).unwrap();
        all.into_iter().map(|one| one.record.id).collect()
    });
    drop(first);
    host.storage.damage_snapshot(&ids[1], "manifest");
    let second = host.serve();
    second.run(async {
        let service = &second.service;
        assert_eq!(names(service), ["one"]);
        let told = service.snapshots.unreadable().unwrap();
        assert_eq!(told[0].name, ids[1].to_string());
        assert!(!service.snapshots.remove_unreadable(ids[0].as_str()).await.unwrap(), "one that can be read");
        assert!(!service.snapshots.remove_unreadable("two").await.unwrap(), "its name is not known");
        assert!(service.snapshots.remove_unreadable(ids[1].as_str()).await.unwrap());
        assert_eq!(service.snapshots.unreadable().unwrap(), []);
        assert_eq!(service.host.unreadable().unwrap().snapshots, []);
    });
    drop(second);
    assert_eq!(host.serve().service.snapshots.unreadable().unwrap(), []);
}

#[test]
fn memory_that_a_vm_sleeps_on_is_not_removed_as_unreadable() {
    let host = Host { named_limit: None, ..Host::new() };
    let first = host.serve();
    let asleep = first.run(async {
        first.service.vms.create(named("dev")).await.unwrap();
        let dev = "dev".parse().unwrap();
        first.service.vms.hibernate(&dev).await.unwrap();
        // Looking at its guest neither wakes it nor uses it.
        let guest = first.service.vms.guest_at_hand(&dev, microvm_types::OperationName::GUEST_HEALTH_OF_ALL);
        assert!(guest.unwrap().is_none());
        let record = first.service.vms.get(&dev).unwrap().record;
        record.life.asleep().unwrap().clone()
    });
    drop(first);
    host.storage.damage_snapshot(&asleep, "manifest");
    let second = host.serve();
    second.run(async {
        let refused = second.service.snapshots.remove_unreadable(asleep.as_str()).await.unwrap_err();
        assert!(refused.to_string().contains("`dev`, which sleeps on it"), "{refused}");
        second.service.vms.delete(&"dev".parse().unwrap(), false).await.unwrap();
        let gone = second.service.snapshots.remove_unreadable(asleep.as_str()).await;
        assert!(gone.is_ok(), "{gone:?}");
    });
}

#[test]
fn a_snapshot_that_cannot_be_removed_keeps_no_other() {
    let host = Host { named_limit: None, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for _ in 0..10 {
            snap(service, None).await;
        }
        let before = names(service);
        host.storage.script().next(Operation::RemoveSnapshot, Fault::Fail);
        snap(service, None).await;
        let after = names(service);
        assert_eq!((after.len(), &after[0], &after[1]), (10, &before[0], &before[2]), "{after:?}");
        host.storage.script().next(Operation::RemoveSnapshot, Fault::Fail);
        let pruned = service.snapshots.prune(Some(1), None, false).await.unwrap();
        assert_eq!((pruned.removed.len(), pruned.kept.len()), (8, 1));
        assert!(pruned.kept[0].reason.contains("a fault was planned here"), "{:?}", pruned.kept);
    });
}

#[test]
fn snapshots_without_a_name_of_their_own_go_after_30_days() {
    let host = Host { named_limit: None, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        snap(service, Some("kept")).await;
        snap(service, None).await;
        host.clock.advance(29 * 24 * 3_600_000);
        snap(service, None).await;
        let left = || names(service);
        assert_eq!(left().len(), 3);
        // It looks once a day.
        host.clock.advance(2 * 24 * 3_600_000);
        until("the old one has gone", || left().len() == 2).await;
        assert_eq!(left()[0], "kept");
        assert_eq!(service.snapshots.prune_old().await.unwrap(), microvm_core::Pruned::default());
    });
}

#[test]
fn statistics_tell_golden_snapshots_and_sleeping_memory_apart_and_count_per_vm() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let dev = service.vms.create(named("dev")).await.unwrap().record.id;
        let asleep = service.vms.create(named("asleep")).await.unwrap().record.id;
        service.vms.hibernate(&"asleep".parse().unwrap()).await.unwrap();
        for name in ["one", "two"] {
            snap(service, Some(name)).await;
        }
        let all = service.snapshots.statistics().unwrap();
        assert_eq!((all.count, all.golden), (2, 1));
        let of_dev = &all.vms[&dev];
        assert_eq!((of_dev.name.as_str(), of_dev.count, of_dev.bytes), ("dev", 2, all.bytes));
        assert!(!all.vms.contains_key(&asleep), "nobody took a snapshot of it");
        let listed =
            service.snapshots.list(&SnapshotFilter { golden: true, ..SnapshotFilter::default() }).unwrap();
        let bytes: u64 = listed.iter().map(|one| one.info.own_bytes).sum();
        assert_eq!(all.bytes + all.golden_bytes, bytes);
        assert!(all.golden_bytes > 0 && all.hibernation_bytes > 0, "{all:?}");
    });
}

#[test]
fn memory_goes_from_disk_only_while_a_machine_has_it() {
    for machine_fails in [false, true] {
        let host = Host::new();
        let server = host.serve();
        server.run(async {
            let service = &server.service;
            service.vms.create(named("dev")).await.unwrap();
            say(service, "dev", "echo kept > /root/note").await;
            // Its memory is whole on disk, and that it sleeps cannot be stored.
            host.store.script().next(Operation::Update, Fault::Fail);
            if machine_fails {
                host.hypervisor.script().next(Operation::Resume, Fault::Fail);
            }
            service.vms.hibernate(&dev()).await.unwrap_err();
            // A machine that refuses to go on has the memory all the same, and may be newer than what was saved.
            let expected = if machine_fails { Phase::Paused } else { Phase::Running };
            assert_eq!(service.vms.get(&dev()).unwrap().record.phase(), expected);
            assert_eq!(host.storage.snapshots().await.unwrap().len(), 0);
            host.clear_faults();
            assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        });
    }
}

#[test]
fn a_machine_that_stands_still_after_a_failed_hibernation_is_shown_so_and_woken() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(named("dev")).await.unwrap();
        host.storage.script().next(Operation::WriteSnapshot, Fault::Fail);
        host.hypervisor.script().next(Operation::Resume, Fault::Fail);
        service.vms.hibernate(&dev()).await.unwrap_err();
        let record = service.vms.get(&dev()).unwrap().record;
        assert_eq!((record.phase(), record.life.rest()), (Phase::Paused, Some(&Rest::Paused)));
        assert_eq!(say(service, "dev", "echo here").await, "here");
    });
}

#[test]
fn a_hibernated_vm_is_woken_for_a_fork_a_snapshot_and_a_resize() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo kept > /root/note").await;
        let phase = || service.vms.get(&dev()).unwrap().record.phase();
        service.vms.hibernate(&dev()).await.unwrap();
        let fork = ForkRequest { count: 1, name: Some("child".into()), ..ForkRequest::default() };
        service.branches.fork(&dev(), fork).await.unwrap();
        assert_eq!(phase(), Phase::Running);
        assert_eq!(say(service, "child", "cat /root/note").await, "kept");
        service.vms.hibernate(&dev()).await.unwrap();
        snap(service, Some("asleep")).await;
        assert_eq!((phase(), names(service)), (Phase::Running, vec!["asleep".to_owned()]));
        service.vms.hibernate(&dev()).await.unwrap();
        // Nobody is woken for what cannot be done: this hypervisor has no balloon.
        let refused = service.vms.resize(&dev(), Some(128), None).await.unwrap_err();
        assert_eq!((refused.code(), phase()), ("no_balloon", Phase::Hibernated), "{refused}");
        let refused = service.vms.resize(&dev(), Some(128), Some(7)).await.unwrap_err();
        assert_eq!((refused.code(), phase()), ("no_processor_hotplug", Phase::Hibernated), "{refused}");
        assert_eq!(service.vms.resize(&dev(), None, None).await.unwrap_err().code(), "invalid_field");
        // Who was woken for work that failed sleeps again.
        host.hypervisor.script().next(Operation::Branch, Fault::Fail);
        let fork = ForkRequest { count: 1, ..ForkRequest::default() };
        service.branches.fork(&dev(), fork).await.unwrap_err();
        assert_eq!(phase(), Phase::Hibernated);
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        // One that cannot be woken is neither forked nor lost.
        service.vms.hibernate(&dev()).await.unwrap();
        host.hypervisor.upgrade("2.0");
        let refused = service.branches.fork(&dev(), ForkRequest { count: 1, ..ForkRequest::default() }).await;
        assert_eq!((refused.unwrap_err().code(), phase()), ("vm_cannot_wake", Phase::Hibernated));
    });
}
