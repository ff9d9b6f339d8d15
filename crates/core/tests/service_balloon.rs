//! Memory that a VM can be given later: only with a guest that follows its balloon, and told as it is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::vm;
use microvm_core::{CreateRequest, Services};
use microvm_driver_fake::{BalloonDriver, Operation};
use microvm_ports::StateStore as _;
use microvm_types::ErrorKind;
use microvm_types::template::Overrides;
use support::{Host, code, named};

/// A request for a VM that has 256 MiB and can be given 2 GiB.
fn grows() -> CreateRequest {
    let (memory_mib, memory_max_mib) = (Some(256), Some(2_048));
    CreateRequest {
        overrides: Overrides { memory_mib, memory_max_mib, ..Overrides::default() },
        ..named("grows")
    }
}

/// What the record of the VM says that its guest has, and what the guest uses; in MiB.
async fn memory(service: &Services) -> (u32, Option<u32>) {
    let stats = service.vms.stats(&vm("grows")).await.unwrap();
    let record = stats.view.record;
    let told = record.memory_now_mib.unwrap_or(record.template.machine_memory_mib());
    (told, stats.memory_actual_mib)
}

#[test]
fn a_guest_that_follows_its_balloon_is_resized_within_its_machine() {
    let host = Host::new();
    host.hypervisor.offer_balloons(BalloonDriver::Follows);
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(grows()).await.unwrap();
        assert_eq!(memory(service).await, (256, Some(256)));
        for size in [2_048, 128, 512] {
            service.vms.resize(&vm("grows"), Some(size), None).await.unwrap();
            assert_eq!(memory(service).await, (size, Some(size)));
        }
        assert_eq!(code(service.vms.resize(&vm("grows"), Some(2_049), None).await), "over_limit");
        let refused = service.vms.resize(&vm("grows"), Some(127), None).await.unwrap_err();
        assert!(refused.to_string().contains("at least 128 MiB"), "{refused}");
        assert_eq!(memory(service).await, (512, Some(512)));
    });
}

#[test]
fn the_size_that_a_guest_has_is_never_too_little() {
    let host = Host::new();
    host.hypervisor.offer_balloons(BalloonDriver::Follows);
    let server = host.serve();
    let mut record = server.run(async { server.service.vms.create(grows()).await.unwrap().record });
    drop(server);
    // As a server of an earlier version left it.
    record.memory_now_mib = Some(100);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(host.store.update_vm(&record)).unwrap();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.resize(&vm("grows"), Some(100), None).await.unwrap();
        assert_eq!(memory(service).await, (100, Some(100)));
        assert_eq!(code(service.vms.resize(&vm("grows"), Some(99), None).await), "invalid_field");
        service.vms.resize(&vm("grows"), Some(128), None).await.unwrap();
        assert_eq!(code(service.vms.resize(&vm("grows"), Some(100), None).await), "invalid_field");
    });
}

#[test]
fn a_guest_without_a_driver_is_refused_at_its_first_boot_and_told_at_later_ones() {
    for mut host in [Host::new(), Host::with_golden()] {
        host.hypervisor.offer_balloons(BalloonDriver::Missing);
        let server = host.serve();
        server.run(async {
            let refused = server.service.vms.create(grows()).await.unwrap_err();
            assert_eq!((refused.code(), refused.kind()), ("no_balloon_driver", ErrorKind::Unsupported));
            assert!(refused.to_string().contains("virtio_balloon"), "{refused}");
            let launched = host.hypervisor.script().calls(Operation::Launch);
            assert_eq!(launched, 1, "it is not tried a second time");
            host.assert_empty_in(&server.service);
            // One that has all of its machine needs no driver.
            server.service.vms.create(named("dev")).await.unwrap();
            server.service.vms.delete(&vm("dev"), false).await.unwrap();
        });
        drop(server);
        // Its kernel was exchanged since it ran: it still runs, and what it takes is told.
        host.golden = false;
        host.hypervisor.offer_balloons(BalloonDriver::Follows);
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.vms.create(grows()).await.unwrap();
            service.vms.stop(&vm("grows"), true, None).await.unwrap();
            assert_eq!(memory(service).await, (256, None));
            host.hypervisor.offer_balloons(BalloonDriver::Missing);
            service.vms.start(&vm("grows")).await.unwrap();
            assert_eq!(memory(service).await, (256, Some(2_048)));
        });
    }
}
