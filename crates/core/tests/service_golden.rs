//! Golden snapshots on fakes: booted once, forked ever after.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_core::{
    BootChoice, CreateRequest, RestoreRequest, Services, SnapshotFilter, SnapshotRequest, VmFilter,
};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::{ImageStore, Progress};
use microvm_types::vm::Origin;
use microvm_types::{Phase, SnapshotId, VmRef};
use support::{Host, code, named, say, until};

const TEMPLATE: &str = "linux-default";

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

fn goldens(service: &Services) -> Vec<SnapshotId> {
    let filter = SnapshotFilter { golden: true, ..SnapshotFilter::default() };
    service.snapshots.list(&filter).unwrap().into_iter().map(|snapshot| snapshot.record.id).collect()
}

fn golden_of(origin: &Origin) -> &SnapshotId {
    match origin {
        Origin::Golden { snapshot } => snapshot,
        other => panic!("it is from {other:?}"),
    }
}

/// Somebody's VM with a secret and commands of their own.
fn private(name: &str, secret: &str) -> CreateRequest {
    let mut request = named(name);
    request.overrides.environment.insert("SECRET".to_owned(), secret.to_owned());
    request.overrides.start_commands = Some(vec![format!("echo {secret} >> /root/started")]);
    request.vm.labels.insert("owner".to_owned(), secret.to_owned());
    request
}

#[test]
fn the_first_vm_boots_for_all_and_leaves_nothing_of_its_own() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let first = service.vms.create(private("first", "alpha")).await.unwrap().record;
        let second = service.vms.create(private("second", "beta")).await.unwrap().record;
        let plain = service.vms.create(named("plain")).await.unwrap().record;
        let all = goldens(service);
        assert_eq!(all.len(), 1);
        for record in [&first, &second, &plain] {
            assert_eq!(golden_of(&record.origin), &all[0]);
        }
        // The golden machine, one that proved its snapshot, and one per VM; no second boot.
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), 5);
        assert_eq!(host.hypervisor.script().calls(Operation::Incoming), 4);
        assert_eq!(host.hypervisor.machines().len(), 3, "the golden machine is left");
        assert_eq!(say(service, "first", "cat /root/started; echo $SECRET").await, "alpha\nalpha");
        let second_says = say(service, "second", "cat /root/started; env; hostname").await;
        assert!(second_says.starts_with("beta\n") && !second_says.contains("alpha"), "{second_says}");
        let plain_says = say(service, "plain", "env; cat /root/started").await;
        assert!(!plain_says.contains("SECRET") && plain_says.contains("no such file"), "{plain_says}");
        let golden = service.snapshots.get(all[0].as_str()).unwrap();
        let kept = format!("{:?} {:?}", golden.record, golden.info.description.record);
        assert!(!kept.contains("alpha"), "the golden snapshot tells of who asked first: {kept}");
        assert_eq!(plain.labels.get("owner"), None);
        for name in ["first", "second", "plain"] {
            service.vms.delete(&vm(name), false).await.unwrap();
        }
    });
    host.assert_empty("after all of a golden snapshot");
}

#[test]
fn many_at_once_wait_for_one_golden_snapshot() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let names: Vec<String> = (0..8).map(|number| format!("vm-{number}")).collect();
        let made = futures::future::join_all(names.iter().map(|name| service.vms.create(named(name)))).await;
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        assert_eq!(goldens(service).len(), 1);
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), 10);
    });
}

#[test]
fn a_golden_snapshot_that_no_vm_comes_up_from_is_not_trusted() {
    // Two commands warm it up; the third proves it.
    for (step, done_before) in [(Operation::Incoming, 0), (Operation::Exec, 2)] {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            host.hypervisor.script().after(step, done_before, Fault::Fail);
            // Whoever asked gets a VM that boots.
            let booted = service.vms.create(named("booted")).await.unwrap().record;
            assert_eq!(booted.origin, Origin::Boot, "{step:?}");
            assert!(goldens(service).is_empty(), "{step:?}: it is kept");
            assert_eq!(host.hypervisor.machines().len(), 1, "{step:?}: a machine is left");
            // The next one makes another, and begins there.
            let record = service.vms.create(named("dev")).await.unwrap().record;
            assert_eq!(golden_of(&record.origin), &goldens(service)[0]);
            for name in ["booted", "dev"] {
                service.vms.delete(&vm(name), false).await.unwrap();
            }
        });
        host.assert_empty("after a golden snapshot that was no good");
    }
}

#[test]
fn what_boots_to_something_else_has_another_golden_snapshot() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let made = service.vms.create(named("small")).await.unwrap().record;
        let mut large = named("large");
        large.overrides.memory_mib = Some(1_024);
        let large = service.vms.create(large).await.unwrap().record;
        assert_ne!(golden_of(&made.origin), golden_of(&large.origin));
        let cold = CreateRequest { boot: BootChoice::Cold, ..named("cold") };
        assert_eq!(service.vms.create(cold).await.unwrap().record.origin, Origin::Boot);
        host.hypervisor.upgrade("99");
        let upgraded = service.vms.create(named("upgraded")).await.unwrap().record;
        assert_ne!(golden_of(&made.origin), golden_of(&upgraded.origin));
        assert_eq!(goldens(service).len(), 3);
    });
}

#[test]
fn a_golden_snapshot_that_cannot_be_made_tells_why_and_leaves_nothing() {
    let steps = [
        Operation::CreateFiles,
        Operation::Launch,
        Operation::Connect,
        Operation::PrepareOverlays,
        Operation::Branch,
        Operation::WriteSnapshot,
        Operation::SnapshotSource,
        Operation::Incoming,
    ];
    for step in steps {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            host.hypervisor.script().next(step, Fault::Fail);
            host.storage.script().next(step, Fault::Fail);
            // Told to the caller, or made good by a second try; never a VM that is half there.
            match service.vms.create(named("dev")).await {
                Ok(made) => assert_eq!(made.record.phase(), Phase::Running, "{step:?}"),
                Err(error) => {
                    assert!(error.to_string().len() > 10, "{step:?}: {error}");
                    host.assert_empty_in(service);
                    host.clear_faults();
                    service.vms.create(named("dev")).await.unwrap();
                }
            }
            service.vms.create(named("next")).await.unwrap();
            for name in ["dev", "next"] {
                service.vms.delete(&vm(name), false).await.unwrap();
            }
        });
        drop(server);
        host.assert_empty(&format!("after {step:?} of a golden snapshot failed"));
    }
}

#[test]
fn a_request_dropped_while_the_golden_snapshot_is_made_leaves_nothing() {
    for step in [Operation::Connect, Operation::Launch] {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        host.hypervisor.script().next(step, Fault::Hang);
        assert!(server.run_a_moment(service.vms.create(named("dev"))).is_none());
        server.run(async {
            let all = microvm_core::VmFilter { waiting: true, ..microvm_core::VmFilter::default() };
            until("the golden machine goes", || {
                service.vms.list(&all).unwrap().is_empty() && host.hypervisor.machines().is_empty()
            })
            .await;
            service.vms.create(named("dev")).await.unwrap();
            assert_eq!(goldens(service).len(), 1);
        });
    }
}

#[test]
fn a_damaged_golden_snapshot_is_made_anew_even_if_others_build_on_it() {
    for others in [false, true] {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            let first = service.vms.create(named("first")).await.unwrap().record;
            let damaged = golden_of(&first.origin).clone();
            if others {
                let request = SnapshotRequest { name: Some("mine".parse().unwrap()), ..Default::default() };
                let mine =
                    service.branches.snapshot(&vm("first"), request, Progress::ignored()).await.unwrap();
                assert_eq!(mine.info.parent.as_ref(), Some(&damaged));
            }
            host.storage.damage_snapshot(&damaged, "memory");
            let second = service.vms.create(named("second")).await.unwrap().record;
            assert_ne!(golden_of(&second.origin), &damaged);
            let third = service.vms.create(named("third")).await.unwrap().record;
            assert_eq!(golden_of(&second.origin), golden_of(&third.origin), "one for each VM");
            assert_eq!(service.snapshots.get(damaged.as_str()).is_ok(), others);
        });
    }
}

#[test]
fn a_removed_golden_snapshot_is_made_anew() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let first = service.vms.create(named("first")).await.unwrap().record;
        service.snapshots.remove(golden_of(&first.origin).as_str(), false).await.unwrap();
        let second = service.vms.create(named("second")).await.unwrap().record;
        assert_ne!(golden_of(&first.origin), golden_of(&second.origin));
        // The first needs nothing of it.
        service.vms.stop(&vm("first"), false, None).await.unwrap();
        service.vms.start(&vm("first")).await.unwrap();
        assert_eq!(say(service, "first", "hostname").await, "first");
    });
}

#[test]
fn what_somebody_makes_of_a_golden_snapshot_is_theirs() {
    let host = Host::with_golden();
    let first = host.serve();
    first.run(async {
        let service = &first.service;
        let made = service.vms.create(named("one")).await.unwrap().record;
        let request = RestoreRequest { name: Some("mine".to_owned()), count: 1, ..RestoreRequest::default() };
        service.branches.restore(golden_of(&made.origin).as_str(), request).await.unwrap();
        assert!(
            service
                .vms
                .list(&VmFilter::default())
                .unwrap()
                .iter()
                .any(|vm| vm.record.name.as_str() == "mine")
        );
    });
    drop(first);
    let second = host.serve();
    second.run(async {
        // Leftovers are removed in the background, the oldest first.
        second.service.vms.delete(&vm("one"), false).await.unwrap();
        assert_eq!(say(&second.service, "mine", "echo lives").await, "lives");
    });
}

#[test]
fn golden_versions_are_chosen_and_the_choice_outlives_the_server() {
    let host = Host::with_golden();
    let first = host.serve();
    let old = first.run(async {
        let service = &first.service;
        let made = service.vms.create(named("one")).await.unwrap().record;
        let old = golden_of(&made.origin).clone();
        assert_eq!(code(service.goldens.rollback(TEMPLATE).await), "invalid_field");
        host.clock.advance(1_000);
        let new = service.goldens.update(TEMPLATE).await.unwrap().snapshot.record.id;
        assert_ne!(old, new);
        let made = service.vms.create(named("two")).await.unwrap().record;
        assert_eq!(golden_of(&made.origin), &new);
        assert_eq!(service.goldens.rollback(TEMPLATE).await.unwrap().snapshot.record.id, old);
        let made = service.vms.create(named("three")).await.unwrap().record;
        assert_eq!(golden_of(&made.origin), &old);
        old
    });
    drop(first);
    let second = host.serve();
    let service = &second.service;
    second.run(async {
        let launched = host.hypervisor.script().calls(Operation::Launch);
        let made = service.vms.create(named("four")).await.unwrap().record;
        assert_eq!(golden_of(&made.origin), &old, "the choice was forgotten");
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), launched + 1, "it was booted again");
        // A failed update leaves the present one.
        host.hypervisor.script().next(Operation::Branch, Fault::Fail);
        service.goldens.update(TEMPLATE).await.unwrap_err();
        let made = service.vms.create(named("five")).await.unwrap().record;
        assert_eq!(golden_of(&made.origin), &old);
        for _ in 0..4 {
            host.clock.advance(1_000);
            service.goldens.update(TEMPLATE).await.unwrap();
        }
        let versions = service.goldens.versions(TEMPLATE).await.unwrap();
        assert_eq!(versions.len(), 3);
        assert!(versions[2].current && !versions[0].current && !versions[1].current);
        for name in ["one", "two", "three", "four", "five"] {
            say(service, name, "true").await;
            service.vms.delete(&vm(name), false).await.unwrap();
        }
    });
    drop(second);
    host.assert_empty("after all versions");
}

#[test]
fn a_server_that_dies_while_it_makes_or_uses_a_golden_snapshot_leaves_no_half() {
    let steps = [
        Operation::Launch,
        Operation::Connect,
        Operation::Branch,
        Operation::WriteSnapshot,
        Operation::SnapshotSource,
        Operation::Incoming,
        Operation::Delete,
    ];
    for step in steps {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::with_golden();
            let first = host.serve();
            for script in [host.hypervisor.script(), host.storage.script(), host.store.script()] {
                script.next(step, fault);
            }
            let _ = first.run_a_moment(first.service.vms.create(named("dev")));
            drop(first);
            host.clear_faults();
            let second = host.serve();
            let service = &second.service;
            second.run(async {
                let _ = service.vms.delete(&vm("dev"), false).await;
                let made = service.vms.create(named("dev")).await.unwrap().record;
                golden_of(&made.origin);
                service.vms.delete(&vm("dev"), false).await.unwrap();
                // A golden machine that was running when the server died is taken up and ends by its idle limit.
                for left in service.vms.list(&microvm_core::VmFilter::default()).unwrap() {
                    assert!(
                        left.record.limits.ephemeral,
                        "{:?} is left after {step:?} {fault:?}",
                        left.record
                    );
                    service.vms.delete(&left.record.id.clone().into(), false).await.unwrap();
                }
            });
            drop(second);
            host.assert_empty(&format!("after {step:?} {fault:?}"));
        }
    }
}

#[test]
fn golden_snapshots_that_nothing_leads_to_any_more_go_after_a_month() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let host = Host::with_golden();
    let first = host.serve();
    first.run(first.service.vms.create(named("old"))).unwrap();
    let golden = SnapshotFilter { golden: true, ..SnapshotFilter::default() };
    let count = |service: &Services| service.snapshots.list(&golden).unwrap().len();
    drop(first);
    // Another VMM: the template leads to another golden snapshot from now on.
    host.hypervisor.upgrade("2.0");
    let second = host.serve();
    let service = &second.service;
    second.run(async {
        service.vms.create(named("new")).await.unwrap();
        assert_eq!(count(service), 2);
        host.clock.advance(29 * DAY_MS);
        assert_eq!(service.goldens.collect_old().await.unwrap(), 0, "it is not a month old");
        host.clock.advance(-60 * DAY_MS);
        assert_eq!(service.goldens.collect_old().await.unwrap(), 0, "the clock was set back");
        host.clock.advance(62 * DAY_MS);
        service.goldens.collect_old().await.unwrap();
        assert_eq!(count(service), 1, "the one in use stays, however old");
        assert_eq!(say(service, "old", "hostname").await, "old");
        service.vms.create(named("newer")).await.unwrap();
        assert_eq!(count(service), 1, "it was made anew");
    });
    drop(second);
    // A use is remembered: the way back to the old VMM within a month finds its golden snapshot.
    host.hypervisor.upgrade("3.0");
    let third = host.serve();
    third.run(async {
        third.service.vms.create(named("newest")).await.unwrap();
        host.clock.advance(20 * DAY_MS);
        assert_eq!(third.service.goldens.collect_old().await.unwrap(), 0);
        host.clock.advance(20 * DAY_MS);
        third.service.goldens.collect_old().await.unwrap();
        assert_eq!(count(&third.service), 1);
    });
}

#[test]
fn an_image_that_only_golden_snapshots_hold_is_removed_with_them() {
    let host = Host::with_golden();
    let server = host.serve();
    let (service, catalog) = (&server.service, &server.service.catalog);
    server.run(async {
        let taken = SnapshotRequest { name: Some("kept".parse().unwrap()), ..SnapshotRequest::default() };
        service.vms.create(named("dev")).await.unwrap();
        service.branches.snapshot(&vm("dev"), taken, Progress::ignored()).await.unwrap();
        let image = || host.storage.image("debian-python");
        // A VM and a snapshot of it hold the image, and are named; a golden snapshot is not.
        let refused = catalog.remove_image("debian-python").await.unwrap_err();
        assert_eq!(refused.code(), "in_use");
        let told = refused.to_string();
        assert!(told.starts_with("the image `debian-python` is in use by "), "{told}");
        assert!(told.contains("the VM `dev`, the snapshot `kept`") && !told.contains("golden"), "{told}");
        service.vms.delete(&vm("dev"), false).await.unwrap();
        let told = catalog.remove_image("debian-python").await.unwrap_err().to_string();
        assert!(told.contains("by the snapshot `kept`: remove"), "{told}");
        assert_eq!(goldens(service).len(), 2, "a refusal removed one: `kept` and the golden one");
        service.snapshots.remove("kept", false).await.unwrap();
        catalog.remove_image("debian-python").await.unwrap();
        assert!(goldens(service).is_empty());
        image().await.unwrap_err();
    });
}

#[test]
fn prune_removes_golden_snapshots_of_images_without_a_name_and_no_others() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        service.vms.delete(&vm("dev"), false).await.unwrap();
        service.catalog.collect_garbage().await.unwrap();
        assert_eq!(goldens(service).len(), 1, "that of an image with a name");
        let digest = host.storage.image("debian-python").await.unwrap().info.digest;
        host.storage.remove_image_name("debian-python").await.unwrap();
        assert!(service.catalog.collect_garbage().await.unwrap() > 0);
        assert!(goldens(service).is_empty());
        host.storage.image(&digest).await.unwrap_err();
    });
}
