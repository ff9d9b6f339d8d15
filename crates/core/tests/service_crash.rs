//! The server dies at every step of creating, stopping and deleting; the next one finds all and leaks nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_driver_fake::{Fault, Operation, Script};
use microvm_types::{OperationName, Phase, VmRef};
use support::{Host, named};

fn script_of(host: &Host, operation: Operation) -> &Script {
    match operation {
        Operation::CreateFiles | Operation::RemoveFiles | Operation::Image | Operation::Kernel => {
            host.storage.script()
        }
        Operation::Insert | Operation::Update | Operation::Delete | Operation::List => host.store.script(),
        _ => host.hypervisor.script(),
    }
}

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

#[test]
fn a_create_that_was_never_answered_is_undone() {
    let steps = [
        Operation::Insert,
        Operation::CreateFiles,
        Operation::Launch,
        Operation::Resume,
        Operation::Connect,
        Operation::Update,
    ];
    for step in steps {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::new();
            let first = host.serve();
            script_of(&host, step).next(step, fault);
            let answered = first.run_a_moment(first.service.vms.create(named("dev")));
            assert!(answered.is_none(), "{step:?} {fault:?} was to hang, but: {answered:?}");
            drop(first);
            host.clear_faults();
            let second = host.serve();
            second.run(async {
                // The row of a VM that ran when the server died may be kept or undone, but never half: a second create
                // of the name is refused only if the VM is there and runs.
                let settled = async {
                    while second.service.vms.get(&dev()).is_ok_and(|vm| vm.record.phase() != Phase::Running) {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(std::time::Duration::from_secs(5), settled).await.expect("it settles");
                if let Ok(vm) = second.service.vms.get(&dev()) {
                    assert_eq!((step, fault), (Operation::Update, Fault::HangAfterwards), "{vm:?}");
                    drop(second.service.vms.guest(&dev(), OperationName::GUEST_EXEC).await.unwrap());
                    second.service.vms.delete(&dev(), false).await.unwrap();
                }
                second.service.vms.create(named("dev")).await.unwrap();
                second.service.vms.delete(&dev(), false).await.unwrap();
            });
            host.assert_empty(&format!("after a crash at {step:?} {fault:?}"));
        }
    }
}

#[test]
fn a_delete_is_finished_by_the_next_server() {
    for step in
        [Operation::Update, Operation::Kill, Operation::Sweep, Operation::RemoveFiles, Operation::Delete]
    {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::new();
            let first = host.serve();
            first.run(first.service.vms.create(named("dev"))).unwrap();
            script_of(&host, step).next(step, fault);
            let _ = first.run_a_moment(first.service.vms.delete(&dev(), false));
            drop(first);
            host.clear_faults();
            let second = host.serve();
            second.run(async {
                if second.service.vms.get(&dev()).is_ok() {
                    // Not begun, or being finished; asking again must do.
                    let _ = second.service.vms.delete(&dev(), false).await;
                }
            });
            host.assert_empty(&format!("after a crash of delete at {step:?} {fault:?}"));
        }
    }
}

#[test]
fn what_was_reported_running_goes_on_running() {
    let host = Host::new();
    let first = host.serve();
    let before = first.run(first.service.vms.create(named("dev"))).unwrap();
    let paused = first.run(async {
        first.service.vms.create(named("still")).await.unwrap();
        first.service.vms.pause(&"still".parse().unwrap()).await.unwrap()
    });
    drop(first);
    let second = host.serve();
    second.run(async {
        let guest = second.service.vms.guest(&dev(), OperationName::GUEST_EXEC).await.unwrap();
        guest.ping().await.unwrap();
        drop(guest);
        let now = second.service.vms.get(&dev()).unwrap().record;
        assert_eq!(now.id, before.record.id);
        assert_eq!(now.epoch, before.record.epoch + 1, "a new server opens a new epoch");
        let id: VmRef = paused.record.id.into();
        assert_eq!(second.service.vms.get(&id).unwrap().record.phase(), Phase::Paused);
        second.service.vms.resume(&id).await.unwrap();
        second.service.vms.guest(&id, OperationName::GUEST_EXEC).await.unwrap().ping().await.unwrap();
    });
    assert_eq!(host.hypervisor.machines().len(), 2);
}

#[test]
fn a_machine_that_died_meanwhile_is_reported_failed() {
    let host = Host::new();
    let first = host.serve();
    let id = first.run(first.service.vms.create(named("dev"))).unwrap().record.id;
    drop(first);
    host.hypervisor.end(&id, microvm_ports::hypervisor::MachineExit::Killed);
    let second = host.serve();
    second.run(async {
        let waited = async {
            while second.service.vms.get(&dev()).unwrap().record.phase() != Phase::Failed {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), waited).await.expect("it is noticed");
        let failure = second.service.vms.get(&dev()).unwrap().record.failure.unwrap();
        assert!(failure.contains("while the server was away"), "{failure}");
    });
}
