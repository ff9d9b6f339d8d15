//! Forks, snapshots, rollback, hibernation, golden snapshots and pools over every manner in which hypervisors save and load:
//! live as pages, paused as a whole file, and with the machine's end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, restored, snap, vm};
use microvm_core::{AcquireRequest, PoolRequest, Services, Tier, VmFilter};
use microvm_driver_fake::{Character, FakeHypervisor, Fault, Operation};
use microvm_ports::capabilities::SaveKind;
use microvm_types::exec::ExecRequest;
use microvm_types::template::Overrides;
use microvm_types::{OperationName, Phase, ProcessId};
use support::{Host, code, named, say, until};

fn host(character: Character) -> Host {
    Host { hypervisor: FakeHypervisor::of(character), ..Host::new() }
}

/// Starts a process that waits: it is in the memory of its machine and nowhere else.
async fn wait_in(service: &Services, name: &str) -> ProcessId {
    let guest = service.vms.guest(&vm(name), OperationName::GUEST_EXEC).await.unwrap();
    let command = ["sh", "-c", "read line"].map(str::to_owned).to_vec();
    guest.exec(&ExecRequest { command, stdin: true, ..ExecRequest::default() }).await.unwrap().id.clone()
}

async fn is_in(service: &Services, name: &str, process: &ProcessId) -> bool {
    let guest = service.vms.guest(&vm(name), OperationName::GUEST_EXEC).await.unwrap();
    let known = guest.processes().await.unwrap();
    known.iter().any(|one| one.id == *process && one.exit.is_none())
}

#[test]
fn forks_snapshots_and_rollbacks_work_however_a_machine_is_saved() {
    for character in Character::ALL {
        let host = host(character);
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            let made = service.vms.create(named("dev")).await.unwrap().record;
            let process = wait_in(service, "dev").await;
            say(service, "dev", "echo before > /root/note").await;
            service.branches.fork(&vm("dev"), forks(2, "try-{n}")).await.unwrap();
            snap(service, "dev", "one").await.unwrap();
            let now = service.vms.get(&vm("dev")).unwrap().record;
            assert_eq!((&now.id, now.phase()), (&made.id, Phase::Running), "{character:?}");
            // The machine is another one only where it ends with its save.
            let stops = character.abilities().save == SaveKind::Stops;
            assert_eq!(now.machine == made.machine, !stops, "{character:?}");
            assert_eq!(say(service, "dev", "cat /root/note; echo later > /root/note").await, "before");
            assert!(is_in(service, "dev", &process).await, "{character:?}: it was booted anew");
            service.branches.restore("one", restored("back")).await.unwrap();
            for child in ["try-1", "try-2", "back"] {
                assert_eq!(say(service, child, "cat /root/note; hostname").await, format!("before\n{child}"));
                assert!(is_in(service, child, &process).await, "{character:?}: {child} was booted");
            }
            // A second snapshot builds on the first, and is whole.
            snap(service, "dev", "two").await.unwrap();
            service.branches.restore("two", restored("later")).await.unwrap();
            assert_eq!(say(service, "later", "cat /root/note").await, "later");
            service.branches.rollback(&vm("dev"), "one").await.unwrap();
            assert_eq!(say(service, "dev", "cat /root/note").await, "before");
            assert!(is_in(service, "dev", &process).await);
            // Paused before, paused after.
            service.vms.pause(&vm("try-1")).await.unwrap();
            service.branches.fork(&vm("try-1"), forks(1, "of-paused")).await.unwrap();
            assert_eq!(service.vms.get(&vm("try-1")).unwrap().record.phase(), Phase::Paused);
            service.vms.resume(&vm("try-1")).await.unwrap();
            assert!(is_in(service, "try-1", &process).await && is_in(service, "of-paused", &process).await);
        });
    }
}

#[test]
fn hibernation_works_however_a_machine_is_saved() {
    for character in Character::ALL {
        let host = host(character);
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("dev")).await.unwrap();
            let process = wait_in(service, "dev").await;
            say(service, "dev", "echo before > /root/note").await;
            for _ in 0..2 {
                service.vms.hibernate(&vm("dev")).await.unwrap();
                assert!(host.hypervisor.machines().is_empty(), "{character:?}: a machine is left");
                service.vms.start(&vm("dev")).await.unwrap();
                assert!(is_in(service, "dev", &process).await, "{character:?}: it was booted anew");
            }
            assert_eq!(say(service, "dev", "cat /root/note").await, "before");
        });
        drop(server);
        // The next server finds it again.
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            assert_eq!(say(service, "dev", "cat /root/note").await, "before");
            service.vms.delete(&vm("dev"), false).await.unwrap();
            host.assert_empty_in(service);
        });
    }
}

#[test]
fn a_hibernation_that_fails_leaves_the_vm_as_it_was_however_its_machine_is_saved() {
    for character in Character::ALL {
        let host = host(character);
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("dev")).await.unwrap();
            let process = wait_in(service, "dev").await;
            // What it saved cannot be kept.
            host.storage.script().next(Operation::WriteSnapshot, Fault::Fail);
            service.vms.hibernate(&vm("dev")).await.unwrap_err();
            assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Running, "{character:?}");
            assert!(is_in(service, "dev", &process).await, "{character:?}: it was booted anew");
            // It is kept, and that cannot be stored: where the machine is gone the VM sleeps all the same.
            host.store.script().next(Operation::Update, Fault::Fail);
            let stops = character.abilities().save == SaveKind::Stops;
            assert_eq!(service.vms.hibernate(&vm("dev")).await.is_ok(), stops, "{character:?}");
            let phase = if stops { Phase::Hibernated } else { Phase::Running };
            assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), phase, "{character:?}");
            assert!(is_in(service, "dev", &process).await, "{character:?}: it was booted anew");
        });
    }
}

#[test]
fn golden_snapshots_and_pools_work_however_a_machine_is_saved() {
    for character in Character::ALL {
        let host = Host { golden: true, ..host(character) };
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(named("first")).await.unwrap();
            let launched = host.hypervisor.script().calls(Operation::Launch);
            service.vms.create(named("second")).await.unwrap();
            assert_eq!(host.hypervisor.script().calls(Operation::Launch), launched + 1);
            assert_eq!(host.hypervisor.script().calls(Operation::Incoming), 3, "{character:?}: one booted");
            let pool = PoolRequest {
                name: "py".parse().unwrap(),
                template: None,
                overrides: Overrides::default(),
                min: 2,
                max: 3,
                max_age_seconds: None,
                labels: std::collections::BTreeMap::new(),
                metadata: std::collections::BTreeMap::new(),
            };
            service.pools.create(pool).await.unwrap();
            until("two wait", || service.pools.get("py").unwrap().waiting == 2).await;
            let request = AcquireRequest { name: Some("mine".parse().unwrap()), ..AcquireRequest::default() };
            let (made, tier) = service.pools.acquire("py", request).await.unwrap();
            assert_eq!((tier, made.record.phase()), (Tier::Pool, Phase::Running), "{character:?}");
            assert_eq!(say(service, "mine", "hostname").await, "mine");
        });
    }
}

#[test]
fn a_machine_that_ends_with_its_save_and_does_not_come_back_is_told_as_lost() {
    let host = host(Character::Stops);
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo before > /root/note").await;
        host.hypervisor.script().next(Operation::Incoming, Fault::Fail);
        let refused = service.branches.fork(&vm("dev"), forks(1, "child")).await;
        assert_eq!(code(refused), "state_refused");
        let record = service.vms.get(&vm("dev")).unwrap().record;
        assert_eq!(record.phase(), Phase::Failed);
        assert!(record.failure.is_some_and(|reason| reason.contains("planned")));
        assert!(host.hypervisor.machines().is_empty(), "a machine is left");
        // Its disk is whole.
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "cat /root/note").await, "before");
        assert_eq!(service.vms.list(&VmFilter::default()).unwrap().len(), 1, "a child is left");
    });
}
