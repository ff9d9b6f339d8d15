//! Volumes of creations that fail or that nobody waits for any more: nothing is left, and nothing of anybody else's goes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::vm;
use microvm_core::{CreateRequest, Services};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::VolumeStore as _;
use microvm_types::template::Overrides;
use microvm_types::volume::VolumeMount;
use support::{Host, code, named, until};

/// A request for a VM that reads the volume `data`.
fn reader(name: &str) -> CreateRequest {
    let mount = VolumeMount { name: "data".parse().unwrap(), target: "/data".to_owned(), read_only: true };
    CreateRequest { overrides: Overrides { volumes: vec![mount], ..Overrides::default() }, ..named(name) }
}

async fn names(service: &Services) -> Vec<String> {
    service.volumes.list().await.unwrap().iter().map(|view| view.record.name.to_string()).collect()
}

async fn eventually(service: &Services, wanted: &[&str]) {
    let reached = async {
        while names(service).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    let reached = tokio::time::timeout(std::time::Duration::from_secs(10), reached).await;
    reached.unwrap_or_else(|_| panic!("never: the volumes are {wanted:?}"));
}

#[test]
fn a_volume_that_nobody_waits_for_any_more_goes_again() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        host.storage.script().next(Operation::CreateVolume, Fault::Hold);
        let client = service.clone();
        let creation =
            tokio::spawn(async move { client.volumes.create(&"data".parse().unwrap(), None).await });
        until("it is being made", || host.storage.script().calls(Operation::CreateVolume) == 1).await;
        creation.abort();
        assert!(creation.await.unwrap_err().is_cancelled());
        host.storage.script().release();
        // Made after the first one: nothing of that is to come any more but its removal.
        service.volumes.create(&"other".parse().unwrap(), None).await.unwrap();
        eventually(service, &["other"]).await;
        assert_eq!(host.storage.volumes().await.unwrap().found.len(), 1, "its directory is left");
        service.volumes.create(&"data".parse().unwrap(), None).await.expect("its name is free");
    });
}

#[test]
fn a_vm_whose_creation_fails_or_is_dropped_leaves_no_volume() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        service.vms.create(reader("dev")).await.unwrap_err();
        assert_eq!(names(service).await, Vec::<String>::new(), "whoever is refused finds nothing left");

        host.hypervisor.script().next(Operation::Launch, Fault::Hang);
        let client = service.clone();
        let creation = tokio::spawn(async move { client.vms.create(reader("dev")).await });
        until("it is launched", || host.hypervisor.script().calls(Operation::Launch) == 2).await;
        assert_eq!(names(service).await, ["data"]);
        creation.abort();
        eventually(service, &[]).await;
        until("the VM is gone", || service.vms.get(&vm("dev")).is_err()).await;

        // What somebody else has used meanwhile stays, also when that one is gone.
        host.hypervisor.script().next(Operation::Launch, Fault::Hang);
        let client = service.clone();
        let creation = tokio::spawn(async move { client.vms.create(reader("dev")).await });
        until("it is launched", || host.hypervisor.script().calls(Operation::Launch) == 3).await;
        service.vms.create(reader("other")).await.unwrap();
        service.vms.delete(&vm("other"), false).await.unwrap();
        creation.abort();
        until("the VM is gone", || service.vms.get(&vm("dev")).is_err()).await;
        // The removal would come right after the VM.
        service.volumes.create(&"later".parse().unwrap(), None).await.unwrap();
        assert_eq!(names(service).await, ["data", "later"]);

        // One that was there before stays in any case.
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        service.vms.create(reader("dev")).await.unwrap_err();
        assert_eq!(names(service).await, ["data", "later"]);
    });
}

#[test]
fn of_two_removals_at_once_one_has_its_way() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        for _ in 0..20 {
            service.volumes.create(&"data".parse().unwrap(), None).await.unwrap();
            let (one, two) = futures::join!(service.volumes.remove("data"), service.volumes.remove("data"));
            assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
            assert_eq!(code(one.and(two)), "volume_not_found");
            let name = "data".parse().unwrap();
            let (one, two) =
                futures::join!(service.volumes.create(&name, None), service.volumes.create(&name, None));
            assert_eq!(code(one.and(two)), "volume_name_taken");
            let (pruned, removed) = futures::join!(service.volumes.prune(), service.volumes.remove("data"));
            let pruned = pruned.unwrap().len();
            assert!((pruned == 1) != removed.is_ok(), "{pruned} {removed:?}");
            assert_eq!(names(service).await, Vec::<String>::new());
        }
    });
}
