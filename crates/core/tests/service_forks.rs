//! Forks of running VMs on fakes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, names, restored, snap, vm, vms};
use microvm_core::ServiceError;
use microvm_driver_fake::{Fault, Operation};
use microvm_types::Phase;
use microvm_types::vm::Origin;
use support::{Host, code, named, say, until};

#[test]
fn children_have_all_of_their_parent_and_are_their_own() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let mut request = named("dev");
        request.vm.labels.insert("team".into(), "red".into());
        let parent = service.vms.create(request).await.unwrap().record;
        say(service, "dev", "echo before > /root/note").await;
        let forked = service.branches.fork(&vm("dev"), forks(3, "try-{n}")).await.unwrap();
        say(service, "dev", "echo later > /root/note").await;
        let names: Vec<&str> = forked.vms.iter().map(|vm| vm.record.name.as_str()).collect();
        assert_eq!(names, ["try-1", "try-2", "try-3"]);
        let mut said = Vec::new();
        for child in &forked.vms {
            let (record, name) = (&child.record, child.record.name.as_str());
            assert_eq!(record.origin, Origin::Fork { vm: parent.id.clone() });
            assert_eq!((record.phase(), &record.labels["team"]), (Phase::Running, &"red".to_owned()));
            let text = say(service, name, "cat /root/note; hostname; cat /etc/machine-id").await;
            assert!(text.starts_with(&format!("before\n{name}\n")), "{text}");
            said.push(text);
            said.push(say(service, name, "cat /proc/sys/kernel/random/uuid").await);
        }
        said.sort();
        said.dedup();
        assert_eq!(said.len(), 6, "two children say the same");
        assert_eq!(say(service, "dev", "cat /root/note; hostname").await, "later\ndev");
        // A child of a child when all before it are gone.
        let second = service.branches.fork(&vm("try-2"), forks(1, "deep")).await.unwrap();
        for gone in ["dev", "try-1", "try-2", "try-3"] {
            service.vms.delete(&vm(gone), false).await.unwrap();
        }
        assert_eq!(say(service, "deep", "cat /root/note").await, "before");
        service.vms.stop(&vm("deep"), false, None).await.unwrap();
        service.vms.start(&vm("deep")).await.unwrap();
        assert_eq!(say(service, "deep", "cat /root/note").await, "before", "its disk went with its parents");
        service.vms.delete(&second.vms[0].record.id.clone().into(), false).await.unwrap();
    });
    host.assert_empty("after all forks");
}

#[test]
fn a_paused_vm_is_forked_and_stays_paused() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        service.vms.pause(&vm("dev")).await.unwrap();
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Paused);
        assert_eq!(say(service, "child", "hostname").await, "child");
        service.vms.resume(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "hostname").await, "dev");
    });
}

#[test]
fn of_many_children_all_come_up_or_none() {
    let steps = [
        Operation::Insert,
        Operation::CreateFiles,
        Operation::Launch,
        Operation::Incoming,
        Operation::Connect,
    ];
    for step in steps {
        let host = Host::new();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("dev")).await.unwrap();
            for script in [host.hypervisor.script(), host.storage.script(), host.store.script()] {
                script.after(step, 2, Fault::Fail);
            }
            let error = service.branches.fork(&vm("dev"), forks(4, "try-{n}")).await.unwrap_err();
            assert!(matches!(error, ServiceError::Fork { count: 4, .. }), "{step:?}: {error}");
            assert!(!error.to_string().is_empty());
            assert_eq!(vms(service), ["dev"], "{step:?}: children are left when the error is told");
            assert_eq!(host.hypervisor.machines().len(), 1, "{step:?}: machines are left");
            assert_eq!(say(service, "dev", "echo fine").await, "fine");
            host.clear_faults();
            service.branches.fork(&vm("dev"), forks(4, "try-{n}")).await.unwrap();
        });
    }
}

#[test]
fn impossible_forks_are_refused_before_the_parent_stands_still() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        service.vms.create(named("taken-2")).await.unwrap();
        let fork = async |request| code(service.branches.fork(&vm("dev"), request).await);
        assert_eq!(fork(forks(0, "a")).await, "invalid_field");
        assert_eq!(fork(forks(2, "same")).await, "invalid_field");
        assert_eq!(fork(forks(1, "no way")).await, "invalid_field");
        assert_eq!(fork(forks(3, "taken-{n}")).await, "vm_name_taken");
        assert_eq!(fork(forks(1_001, "many-{n}")).await, "too_many_vms");
        assert_eq!(fork(forks(usize::MAX, "many-{n}")).await, "too_many_vms");
        let nobody = service.branches.fork(&vm("nobody"), forks(1, "a")).await;
        assert_eq!(code(nobody), "vm_not_found");
        assert_eq!(host.hypervisor.script().calls(Operation::Branch), 0, "something was branched");
        assert_eq!(vms(service), ["dev", "taken-2"]);
        service.vms.stop(&vm("dev"), true, None).await.unwrap();
        assert_eq!(fork(forks(1, "a")).await, "vm_not_running");
        assert_eq!(code(snap(service, "dev", "s").await), "vm_not_running");
    });
}

#[test]
fn what_starts_or_stops_is_not_forked() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(named("dev")).await.unwrap();
        for (operation, phase) in
            [(Operation::Shutdown, Phase::Stopping), (Operation::Connect, Phase::Starting)]
        {
            host.hypervisor.script().next(operation, Fault::Hang);
            let changing = {
                let service = service.clone();
                tokio::spawn(async move {
                    if phase == Phase::Stopping {
                        service.vms.stop(&vm("dev"), false, None).await
                    } else {
                        service.vms.start(&vm("dev")).await
                    }
                })
            };
            until("the phase", || service.vms.get(&vm("dev")).unwrap().record.phase() == phase).await;
            assert_eq!(code(service.branches.fork(&vm("dev"), forks(1, "a")).await), "vm_not_running");
            assert_eq!(code(snap(service, "dev", "s").await), "vm_not_running");
            // A start that hangs is ended by its deadline, a stop by its grace.
            let _ = changing.await.unwrap();
        }
    });
}

#[test]
fn a_dropped_fork_leaves_nothing() {
    for step in [Operation::Branch, Operation::ForkPoint, Operation::Incoming, Operation::Connect] {
        let host = Host::new();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("dev")).await.unwrap();
        });
        // Hangs do not end by themselves: with them only those steps that a delete overtakes.
        let fault =
            if matches!(step, Operation::Incoming | Operation::Connect) { Fault::Hang } else { Fault::Fail };
        host.hypervisor.script().after(step, 1, fault);
        host.storage.script().next(step, fault);
        let outcome = server.run_a_moment(service.branches.fork(&vm("dev"), forks(3, "try-{n}")));
        assert!(!matches!(outcome, Some(Ok(_))) || step == Operation::Branch, "{step:?}");
        server.run(async {
            if let Some(Ok(_)) = outcome {
                for name in ["try-1", "try-2", "try-3"] {
                    service.vms.delete(&vm(name), false).await.unwrap();
                }
            }
            until("children go", || vms(service) == ["dev"] && host.hypervisor.machines().len() == 1).await;
            host.clear_faults();
            assert_eq!(say(service, "dev", "echo fine").await, "fine");
            service.branches.fork(&vm("dev"), forks(3, "try-{n}")).await.unwrap();
        });
    }
}

#[test]
fn a_branch_that_fails_leaves_the_vm_as_it_was() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo kept > /root/note").await;
        for step in [Operation::PrepareOverlays, Operation::Branch, Operation::ForkPoint] {
            host.hypervisor.script().next(step, Fault::Fail);
            host.storage.script().next(step, Fault::Fail);
            service.branches.fork(&vm("dev"), forks(2, "try-{n}")).await.unwrap_err();
            assert_eq!(vms(service), ["dev"], "{step:?}");
            host.clear_faults();
        }
        for step in [Operation::PrepareOverlays, Operation::Branch, Operation::WriteSnapshot] {
            host.hypervisor.script().next(step, Fault::Fail);
            host.storage.script().next(step, Fault::Fail);
            snap(service, "dev", "s").await.unwrap_err();
            assert!(names(service).is_empty(), "{step:?}");
            host.clear_faults();
        }
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        snap(service, "dev", "s").await.unwrap();
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        service.branches.restore("s", restored("copy")).await.unwrap();
        for name in ["child", "copy"] {
            assert_eq!(say(service, name, "cat /root/note").await, "kept", "{name}");
        }
    });
}

#[test]
fn a_hypervisor_without_branches_says_so() {
    let host = Host::with_golden();
    host.hypervisor.forget_branching();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let made = service.vms.create(named("dev")).await.unwrap();
        assert_eq!(made.record.origin, Origin::Boot);
        assert_eq!(code(service.branches.fork(&vm("dev"), forks(1, "a")).await), "no_branching");
        assert_eq!(code(snap(service, "dev", "s").await), "no_branching");
        assert_eq!(code(service.goldens.versions("linux-default").await), "no_branching");
    });
}

#[test]
fn a_vm_tells_how_long_it_took_itself_to_be_ready() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let boot_ms = |name: &str| service.vms.get(&vm(name)).unwrap().record.boot_ms;
        let stopped = microvm_core::CreateRequest { start: false, ..named("later") };
        service.vms.create(stopped).await.unwrap();
        assert_eq!(boot_ms("later"), None, "it never started");
        service.vms.create(named("dev")).await.unwrap();
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        service.vms.start(&vm("later")).await.unwrap();
        for name in ["dev", "child", "later"] {
            assert!(boot_ms(name).is_some(), "{name}");
        }
    });
}
