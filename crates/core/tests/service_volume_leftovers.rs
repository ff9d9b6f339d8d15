//! Volumes of creations that fail or that nobody waits for any more: nothing is left, and nothing of anybody else's goes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::vm;
use microvm_core::{CreateRequest, ServiceError, Services};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::VolumeStore as _;
use microvm_types::Phase;
use microvm_types::template::Overrides;
use microvm_types::volume::VolumeMount;
use support::{Host, code, named, until};

/// A request for a VM that reads the volume `data`.
fn reader(name: &str) -> CreateRequest {
    let mount = VolumeMount { name: "data".parse().unwrap(), target: "/data".to_owned(), read_only: true };
    CreateRequest { overrides: Overrides { volumes: vec![mount], ..Overrides::default() }, ..named(name) }
}

/// Names of the volumes on disk. Nobody is told of one by this look.
async fn on_disk(host: &Host) -> Vec<String> {
    let mut found = host.storage.volumes().await.unwrap().found;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found.iter().map(|record| record.name.to_string()).collect()
}

async fn eventually(host: &Host, wanted: &[&str]) {
    let reached = async {
        while on_disk(host).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    let reached = tokio::time::timeout(std::time::Duration::from_secs(10), reached).await;
    reached.unwrap_or_else(|_| panic!("never: the volumes are {wanted:?}"));
}

/// Begins to create a VM that reads the volume `data`, whose machine is never launched.
async fn begin(host: &Host, service: &Services, name: &str) -> Begun {
    host.hypervisor.script().next(Operation::Launch, Fault::Hang);
    let before = host.hypervisor.script().calls(Operation::Launch);
    let (client, request) = (service.clone(), reader(name));
    let begun = tokio::spawn(async move { client.vms.create(request).await.map(drop) });
    until("it is launched", || host.hypervisor.script().calls(Operation::Launch) > before).await;
    begun
}

/// Begins to create a VM that reads the volume `data`, and waits until it runs, and its hook, which does not end.
async fn begin_with_hook(host: &Host, service: &Services, name: &str) -> Begun {
    let hook = r#"{"at": "after_create", "program": ["/bin/hold"]}"#;
    let mut request = reader(name);
    request.overrides.hooks.push(serde_json::from_str(hook).unwrap());
    let client = service.clone();
    let begun = tokio::spawn(async move { client.vms.create(request).await.map(drop) });
    until("its hook runs", || !host.hooks.events().is_empty()).await;
    begun
}

type Begun = tokio::task::JoinHandle<Result<(), ServiceError>>;

/// Gives a creation up, and waits until its VM is gone.
async fn give_up(host: &Host, service: &Services, name: &str, begun: Begun) {
    begun.abort();
    assert!(begun.await.unwrap_err().is_cancelled());
    // One that has come up is deleted only when its hook is through.
    host.hooks.release();
    until("the VM is gone", || service.vms.get(&vm(name)).is_err()).await;
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
        eventually(&host, &["other"]).await;
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
        assert_eq!(on_disk(&host).await, [""; 0], "whoever is refused finds nothing left");
        let begun = begin(&host, service, "dev").await;
        assert_eq!(on_disk(&host).await, ["data"]);
        give_up(&host, service, "dev", begun).await;
        eventually(&host, &[]).await;
        // One that was there before stays in any case.
        service.volumes.create(&"data".parse().unwrap(), None).await.unwrap();
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        service.vms.create(reader("dev")).await.unwrap_err();
        server.engine.close().await;
        assert_eq!(on_disk(&host).await, ["data"]);
    });
}

#[test]
fn the_last_of_several_creations_that_fail_removes_their_volume() {
    for first in ["one", "two"] {
        let host = Host::new();
        let server = host.serve();
        server.run(async {
            let service = &server.service;
            let mut begun = std::collections::HashMap::new();
            for name in ["one", "two"] {
                begun.insert(name, begin(&host, service, name).await);
            }
            give_up(&host, service, first, begun.remove(first).unwrap()).await;
            // Fails at once, and finds the volume in the hands of another.
            host.hypervisor.script().next(Operation::Launch, Fault::Fail);
            service.vms.create(reader("three")).await.unwrap_err();
            assert_eq!(on_disk(&host).await, ["data"], "the other one has it");
            let (last, begun) = begun.drain().next().unwrap();
            give_up(&host, service, last, begun).await;
            eventually(&host, &[]).await;
        });
    }
}

#[test]
fn a_volume_that_somebody_has_used_or_was_told_of_stays() {
    for told in ["used by another VM", "name taken", "listed", "shown", "used by its own VM"] {
        let host = Host::new();
        let server = host.serve();
        server.run(async {
            let service = &server.service;
            let data: microvm_types::Name = "data".parse().unwrap();
            let begun = match told {
                "used by its own VM" => begin_with_hook(&host, service, "dev").await,
                _ => begin(&host, service, "dev").await,
            };
            match told {
                "used by another VM" => {
                    service.vms.create(reader("other")).await.unwrap();
                    service.vms.delete(&vm("other"), false).await.unwrap();
                }
                "name taken" => {
                    assert_eq!(code(service.volumes.create(&data, None).await), "volume_name_taken");
                }
                "listed" => assert_eq!(service.volumes.list().await.unwrap().len(), 1),
                "shown" => drop(service.volumes.get("data").await.unwrap()),
                _ => assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Running),
            }
            give_up(&host, service, "dev", begun).await;
            // All that was begun in the background is done then.
            server.engine.close().await;
            assert_eq!(on_disk(&host).await, ["data"], "{told}");
        });
    }
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
            assert_eq!(on_disk(&host).await, [""; 0]);
        }
    });
}
