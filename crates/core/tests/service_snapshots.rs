//! Snapshots and rollbacks on fakes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, names, restored, snap, vm, vms};
use microvm_core::{RestoreRequest, SnapshotFilter, SnapshotRequest};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::Progress;
use microvm_types::Phase;
use microvm_types::vm::Origin;
use support::{Host, code, named, say, until};

#[test]
fn a_snapshot_is_proved_by_a_vm_where_that_is_wanted() {
    let host = Host { prove: true, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let launched = host.hypervisor.script().calls(Operation::Launch);
        snap(service, "dev", "good").await.unwrap();
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), launched + 1);
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        let error = snap(service, "dev", "doubtful").await.unwrap_err();
        assert_eq!(error.code(), "snapshot_unproven", "{error}");
        assert_eq!(names(service), ["good", "doubtful"], "it is kept: the reason may be one of the moment");
        assert_eq!(vms(service), ["dev"], "what proved it is gone");
    });
}

#[test]
fn a_snapshot_is_restored_and_its_vm_put_back() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let mut request = named("dev");
        request.overrides.start_commands = Some(vec!["echo started >> /root/log".to_owned()]);
        let dev = service.vms.create(request).await.unwrap().record;
        say(service, "dev", "echo one > /root/note").await;
        let taken = snap(service, "dev", "one").await.unwrap();
        assert_eq!((taken.record.vm.clone(), taken.info.parent.clone()), (dev.id.clone(), None));
        say(service, "dev", "echo two > /root/note").await;
        let second = snap(service, "dev", "two").await.unwrap();
        assert_eq!(second.info.parent, Some(taken.record.id.clone()), "it is not incremental");

        let copy = service.branches.restore("one", restored("copy")).await.unwrap().remove(0).record;
        assert_eq!(copy.origin, Origin::Snapshot { snapshot: taken.record.id.clone() });
        assert_eq!(say(service, "copy", "cat /root/note; hostname").await, "one\ncopy");
        let many = RestoreRequest { count: 3, name: Some("c-{n}".into()), ..RestoreRequest::default() };
        assert_eq!(service.branches.restore("two", many).await.unwrap().len(), 3);
        assert_eq!(say(service, "c-3", "cat /root/note").await, "two");

        for phase in [Phase::Running, Phase::Paused, Phase::Stopped] {
            say(service, "dev", "echo lost > /root/note").await;
            match phase {
                Phase::Paused => drop(service.vms.pause(&vm("dev")).await.unwrap()),
                Phase::Stopped => drop(service.vms.stop(&vm("dev"), true, None).await.unwrap()),
                _ => {}
            }
            let back = service.branches.rollback(&vm("dev"), "one").await.unwrap().record;
            assert_eq!((back.id.clone(), back.phase()), (dev.id.clone(), Phase::Running));
            let said = say(service, "dev", "cat /root/note /root/log; hostname").await;
            assert_eq!(said, "one\nstarted\ndev", "from {phase}");
        }
        assert_eq!(code(service.branches.rollback(&vm("copy"), "one").await), "invalid_field");
        assert_eq!(code(service.branches.rollback(&vm("dev"), "none").await), "snapshot_not_found");
        service.branches.rollback(&vm("dev"), "two").await.unwrap();
        assert_eq!(say(service, "dev", "cat /root/note").await, "two");
        // Its own snapshot outlives it.
        service.vms.delete(&vm("dev"), false).await.unwrap();
        service.branches.restore("one", restored("late")).await.unwrap();
        // A name that is used again names another VM.
        service.vms.create(named("dev")).await.unwrap();
        let refused = service.branches.rollback(&vm("dev"), "one").await.unwrap_err();
        assert!(refused.to_string().contains("an earlier VM of that name"), "{refused}");
        service.vms.delete(&vm("dev"), false).await.unwrap();
        assert_eq!(say(service, "late", "cat /root/note /root/log").await, "one\nstarted");
    });
}

#[test]
fn snapshot_names_are_taken_once() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let outcomes =
            futures::join!(snap(service, "dev", "s"), snap(service, "dev", "s"), snap(service, "dev", "s"));
        let outcomes = [outcomes.0, outcomes.1, outcomes.2];
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        for error in outcomes.into_iter().filter_map(Result::err) {
            assert_eq!(error.code(), "snapshot_name_taken");
        }
        assert_eq!(names(service), ["s"]);
        service.snapshots.remove("s", false).await.unwrap();
        host.storage.script().next(Operation::WriteSnapshot, Fault::Fail);
        snap(service, "dev", "s").await.unwrap_err();
        snap(service, "dev", "s").await.expect("the name of a failed one is free");
        let made_up = SnapshotRequest::default();
        service.branches.snapshot(&vm("dev"), made_up, Progress::ignored()).await.unwrap();
        assert_eq!(names(service).len(), 2);
    });
}

#[test]
fn a_snapshot_whose_request_went_away_is_there_whole() {
    use microvm_ports::SnapshotStore as _;
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        // Dropped at every point of its way: after none, one, two … steps.
        for steps in 0..20 {
            let name = format!("s{steps}");
            {
                let mut taking = std::pin::pin!(snap(service, "dev", &name));
                for _ in 0..steps {
                    if futures::poll!(&mut taking).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            if steps > 0 {
                until("it is written all the same", || names(service).contains(&name)).await;
                service.snapshots.remove(&name, false).await.unwrap();
            }
            assert_eq!(names(service), [""; 0]);
            assert_eq!(host.storage.snapshots().await.unwrap().len(), 0, "one is on disk that nobody knows");
            snap(service, "dev", &name).await.expect("its name is free");
            service.snapshots.remove(&name, false).await.unwrap();
        }
    });
}

#[test]
fn a_vm_keeps_its_newest_snapshots() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for number in 1..=10 {
            host.clock.advance(1_000);
            say(service, "dev", &format!("echo {number} > /root/note")).await;
            snap(service, "dev", &format!("s{number}")).await.unwrap();
        }
        assert_eq!(names(service).len(), 10);
        // Something of another VM is made from the second: it stays.
        service.branches.restore("s2", restored("other")).await.unwrap();
        snap(service, "other", "from-s2").await.unwrap();
        for number in 11..=13 {
            host.clock.advance(1_000);
            snap(service, "dev", &format!("s{number}")).await.unwrap();
        }
        let mut expected = vec!["s2", "s5", "s6", "s7", "s8", "s9", "s10", "from-s2", "s11", "s12", "s13"];
        expected.sort_unstable();
        let mut kept = names(service);
        kept.sort_unstable();
        assert_eq!(kept, expected);
        // What built on those that went is whole.
        service.branches.restore("s5", restored("five")).await.unwrap();
        assert_eq!(say(service, "five", "cat /root/note").await, "5");
        service.branches.restore("from-s2", restored("two")).await.unwrap();
        assert_eq!(say(service, "two", "cat /root/note").await, "2");
    });
}

#[test]
fn the_newest_snapshot_stays_even_if_no_older_one_may_go() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for number in 1..=10 {
            host.clock.advance(1_000);
            snap(service, "dev", &format!("s{number}")).await.unwrap();
            service.branches.restore(&format!("s{number}"), restored(&format!("vm{number}"))).await.unwrap();
            snap(service, &format!("vm{number}"), &format!("of{number}")).await.unwrap();
        }
        host.clock.advance(1_000);
        let newest = snap(service, "dev", "newest").await.unwrap();
        assert_eq!(service.snapshots.get("newest").unwrap().record.id, newest.record.id);
        service.branches.restore("newest", restored("copy")).await.unwrap();
    });
}

#[test]
fn a_snapshot_with_children_goes_only_with_them() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for number in 1..=3 {
            host.clock.advance(1_000);
            say(service, "dev", &format!("echo {number} > /root/note")).await;
            snap(service, "dev", &format!("s{number}")).await.unwrap();
        }
        assert_eq!(code(service.snapshots.remove("s1", false).await), "in_use");
        assert_eq!(names(service), ["s1", "s2", "s3"]);
        assert_eq!(service.snapshots.remove("s2", true).await.unwrap(), 2);
        assert_eq!(names(service), ["s1"]);
        service.branches.restore("s1", restored("one")).await.unwrap();
        assert_eq!(say(service, "one", "cat /root/note").await, "1");
        // The VM goes on from its last snapshot, which is gone.
        snap(service, "dev", "s4").await.unwrap();
        service.branches.restore("s4", restored("four")).await.unwrap();
        assert_eq!(say(service, "four", "cat /root/note").await, "3");
        assert_eq!(service.snapshots.remove("s1", true).await.unwrap(), 1);
        assert_eq!(code(service.branches.restore("s1", restored("again")).await), "snapshot_not_found");
    });
}

#[test]
fn a_damaged_or_foreign_snapshot_makes_no_vm() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let damaged = snap(service, "dev", "damaged").await.unwrap();
        let full =
            SnapshotRequest { name: Some("fine".parse().unwrap()), full: true, ..SnapshotRequest::default() };
        service.branches.snapshot(&vm("dev"), full, Progress::ignored()).await.unwrap();
        host.storage.damage_snapshot(&damaged.record.id, "memory");
        assert_eq!(code(service.branches.restore("damaged", restored("copy")).await), "damaged");
        assert_eq!(
            service.snapshots.verify("damaged", Progress::ignored()).await.unwrap().damage[0].part,
            "memory"
        );
        assert_eq!(code(service.branches.rollback(&vm("dev"), "damaged").await), "damaged");
        assert_eq!(say(service, "dev", "echo fine").await, "fine", "a refused rollback harms the VM");
        host.hypervisor.upgrade("99");
        assert_eq!(code(service.branches.restore("fine", restored("copy")).await), "state_incompatible");
        assert_eq!(vms(service), ["dev"]);
        host.hypervisor.script().next(Operation::Connect, Fault::Fail);
    });
    assert_eq!(host.hypervisor.machines().len(), 1);
}

#[test]
fn snapshots_and_vms_on_them_outlive_the_server() {
    let host = Host::new();
    let first = host.serve();
    first.run(async {
        let service = &first.service;
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo one > /root/note").await;
        snap(service, "dev", "one").await.unwrap();
        snap(service, "dev", "two").await.unwrap();
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        say(service, "dev", "echo lost > /root/note").await;
    });
    let before = first.service.snapshots.list(&SnapshotFilter::default()).unwrap();
    drop(first);
    let second = host.serve();
    let service = &second.service;
    second.run(async {
        let after = service.snapshots.list(&SnapshotFilter::default()).unwrap();
        let of = |all: &[microvm_core::Snapshot]| -> Vec<_> {
            all.iter().map(|one| (one.record.clone(), one.info.parent.clone())).collect()
        };
        assert_eq!(of(&after), of(&before));
        assert_eq!(code(snap(service, "dev", "one").await), "snapshot_name_taken");
        service.branches.restore("one", restored("copy")).await.unwrap();
        service.branches.rollback(&vm("dev"), "one").await.unwrap();
        for name in ["copy", "dev", "child"] {
            assert_eq!(say(service, name, "cat /root/note").await, "one", "{name}");
        }
        service.branches.fork(&vm("child"), forks(1, "grandchild")).await.unwrap();
        assert_eq!(say(service, "grandchild", "cat /root/note").await, "one");
    });
}

#[test]
fn a_server_that_dies_in_a_fork_or_snapshot_leaves_no_half() {
    let steps = [
        Operation::PrepareOverlays,
        Operation::Branch,
        Operation::ForkPoint,
        Operation::WriteSnapshot,
        Operation::CreateFiles,
        Operation::Incoming,
        Operation::Resume,
        Operation::Connect,
        Operation::Update,
    ];
    for step in steps {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::new();
            let first = host.serve();
            first.run(async {
                first.service.vms.create(named("dev")).await.unwrap();
                say(&first.service, "dev", "echo kept > /root/note").await;
            });
            for script in [host.hypervisor.script(), host.storage.script(), host.store.script()] {
                script.next(step, fault);
            }
            let _ = first.run_a_moment(async {
                let _ = snap(&first.service, "dev", "s").await;
                first.service.branches.fork(&vm("dev"), forks(2, "try-{n}")).await
            });
            drop(first);
            host.clear_faults();
            let second = host.serve();
            let service = &second.service;
            second.run(async {
                until(&format!("settled after {step:?} {fault:?}"), || {
                    let all = service.vms.list(&microvm_core::VmFilter::default()).unwrap();
                    all.iter().all(|vm| vm.record.phase() == Phase::Running)
                })
                .await;
                assert_eq!(say(service, "dev", "cat /root/note").await, "kept", "{step:?} {fault:?}");
                for name in names(service) {
                    service.branches.restore(&name, restored("copy")).await.unwrap();
                    assert_eq!(say(service, "copy", "cat /root/note").await, "kept");
                    service.snapshots.remove(&name, false).await.unwrap();
                }
                service.branches.fork(&vm("dev"), forks(2, "again-{n}")).await.unwrap();
                for name in vms(service) {
                    service.vms.delete(&vm(&name), false).await.unwrap();
                }
            });
            drop(second);
            host.assert_empty(&format!("after {step:?} {fault:?}"));
        }
    }
}

#[test]
fn a_vm_is_taken_up_though_its_newest_epoch_was_never_stored() {
    let host = Host::new();
    let first = host.serve();
    first.run(first.service.vms.create(named("dev"))).unwrap();
    drop(first);
    // The next server opens an epoch and dies before it has noted that.
    host.store.script().next(Operation::Update, Fault::Hang);
    let second = host.serve();
    second.run(until("the adoption", || host.store.script().calls(Operation::Update) >= 2));
    drop(second);
    host.clear_faults();
    let third = host.serve();
    assert_eq!(third.run(say(&third.service, "dev", "echo fine")), "fine");
}
