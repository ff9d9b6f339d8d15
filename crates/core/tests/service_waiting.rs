//! VMMs that wait for the children of a VM.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::time::Duration;

use branches::{forks, vm};
use microvm_core::Services;
use microvm_driver_fake::{Fault, Operation};
use microvm_types::VmId;
use support::{Host, named, until};

/// Forks `dev` once and returns the child's id.
async fn child(service: &Services, name: &str) -> VmId {
    service.branches.fork(&vm("dev"), forks(1, name)).await.unwrap().vms[0].record.id.clone()
}

/// Waits until a VMM waits for the next child and can be taken; whose it will be.
async fn waiting(service: &Services, host: &Host) -> VmId {
    let mut ready = service.host.ready_vmms().unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(10), ready.wait_for(|count| *count == 1)).await;
    waited.expect("no VMM waits").unwrap();
    assert_eq!(host.hypervisor.prepared().len(), 1);
    host.hypervisor.prepared().remove(0)
}

/// Makes `dev` with a child called `first`; returns whose the next VMM will be.
async fn forked_once(service: &Services, host: &Host) -> VmId {
    service.vms.create(named("dev")).await.unwrap();
    child(service, "first").await;
    waiting(service, host).await
}

async fn none_waits(host: &Host, directory: &camino::Utf8Path) {
    until("no VMM waits", || host.hypervisor.prepared().is_empty() && !directory.exists()).await;
}

fn directory(host: &Host, id: &VmId) -> camino::Utf8PathBuf {
    microvm_ports::VmStorage::vm_directory(&host.storage, id)
}

#[test]
fn the_next_child_gets_the_vmm_that_waits_and_the_end_of_the_vm_ends_it() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let next = forked_once(service, &host).await;
        assert_eq!(child(service, "second").await, next);
        let other = waiting(service, &host).await;
        assert_ne!(other, next);
        // So many children that their memory gets a base of its own: no VMM can have been started for it.
        let forked = service.branches.fork(&vm("dev"), forks(3, "more-{n}")).await.unwrap();
        assert!(forked.vms.iter().all(|vm| vm.record.id != other));
        assert_eq!(child(service, "third").await, other);
        let last = waiting(service, &host).await;
        service.vms.stop(&vm("dev"), true, None).await.unwrap();
        none_waits(&host, &directory(&host, &last)).await;
        for name in ["dev", "first", "second", "third", "more-1", "more-2", "more-3"] {
            service.vms.delete(&vm(name), false).await.unwrap();
        }
        host.assert_empty_in(service);
    });
    host.assert_empty("after everything was deleted");
}

#[test]
fn a_fork_that_fails_ends_the_vmm_that_waited_for_it() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let next = forked_once(service, &host).await;
        host.hypervisor.script().next(Operation::Incoming, Fault::Fail);
        service.branches.fork(&vm("dev"), forks(1, "second")).await.unwrap_err();
        until("its directory is gone", || !directory(&host, &next).exists()).await;
        // And one that cannot be started keeps nobody from forking.
        host.hypervisor.script().next(Operation::Prepare, Fault::Fail);
        let prepared = host.hypervisor.script().calls(Operation::Prepare);
        child(service, "third").await;
        until("it was tried", || host.hypervisor.script().calls(Operation::Prepare) > prepared).await;
        child(service, "fourth").await;
        waiting(service, &host).await;
        for name in ["dev", "first", "third", "fourth"] {
            service.vms.delete(&vm(name), false).await.unwrap();
        }
    });
    server.run(server.engine.close());
    drop(server);
    host.assert_empty("after forks that failed");
}

#[test]
fn the_next_server_ends_what_waited() {
    let host = Host::new();
    let first = host.serve();
    let id = first.run(forked_once(&first.service, &host));
    drop(first);
    assert!(directory(&host, &id).exists(), "a killed server removes nothing");
    let second = host.serve();
    assert!(host.hypervisor.prepared().is_empty() && !directory(&host, &id).exists());
    second.run(async {
        child(&second.service, "second").await;
        let id = waiting(&second.service, &host).await;
        second.engine.close().await;
        assert!(host.hypervisor.prepared().is_empty() && !directory(&host, &id).exists());
    });
}
