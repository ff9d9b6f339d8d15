//! Limits of all VMs together: exact, however many ask at once, and whatever goes wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::BTreeMap;

use branches::{forks, restored, snap, vm};
use futures::future::join_all;
use microvm_core::{HostLimits, ServiceError, Services, VmFilter};
use microvm_driver_fake::{Fault, Operation};
use support::{Host, code, named, until};

/// Memory of the VMs of these tests in MiB: that of the default template.
const MEMORY: u64 = 512;

fn host(limits: HostLimits) -> Host {
    Host { limits, ..Host::new() }
}

fn count(service: &Services) -> usize {
    service.vms.list(&VmFilter::default()).unwrap().len()
}

/// Creates so many at once; how often each outcome came.
async fn storm(service: &Services, round: usize, vms: usize) -> BTreeMap<String, usize> {
    let creates = (0..vms).map(|number| {
        let service = service.clone();
        tokio::spawn(async move { service.vms.create(named(&format!("vm-{round}-{number}"))).await })
    });
    let mut outcomes = BTreeMap::new();
    for outcome in join_all(creates).await {
        let code = outcome.unwrap().map_or_else(|error| error.code().to_owned(), |_| "made".to_owned());
        *outcomes.entry(code).or_default() += 1;
    }
    outcomes
}

async fn clear(service: &Services) {
    let all = service.vms.list(&VmFilter::default()).unwrap();
    let gone = join_all(
        all.iter().map(|vm| async { service.vms.delete(&vm.record.id.clone().into(), false).await }),
    );
    gone.await.into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn many_creates_at_once_never_overshoot_and_leak_nothing() {
    let host = host(HostLimits { max_vms: 8, ..HostLimits::default() });
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        for round in 0..5 {
            // Some machines do not come up: their places are free again, for whoever asks next.
            for good in [0, 2] {
                host.hypervisor.script().after(Operation::Launch, good, Fault::Fail);
            }
            let outcomes = storm(service, round, 40).await;
            host.clear_faults();
            let made = outcomes.get("made").copied().unwrap_or(0);
            assert_eq!(made, count(service));
            assert!(made <= 8 && outcomes.contains_key("too_many_vms"), "{outcomes:?}");
            let more = storm(service, 100 + round, 40).await;
            assert_eq!(count(service), 8, "{more:?}");
            assert_eq!(code(service.branches.fork(&some(service), forks(1, "child")).await), "too_many_vms");
            clear(service).await;
        }
        // Whoever goes away in the middle leaves no place taken.
        host.hypervisor.script().next(Operation::Launch, Fault::Hang);
        let given_up = service.vms.create(named("given-up"));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(100), given_up).await.is_err());
        until("it is gone", || count(service) == 0).await;
        host.clear_faults();
        let outcomes = storm(service, 1_000, 9).await;
        assert_eq!((outcomes["made"], outcomes["too_many_vms"]), (8, 1));
    });
}

fn some(service: &Services) -> microvm_types::VmRef {
    service.vms.list(&VmFilter::default()).unwrap()[0].record.id.clone().into()
}

#[test]
fn memory_and_disk_of_all_vms_together_are_limited() {
    let limits = HostLimits { total_memory_mib: Some(4 * MEMORY + 10), ..HostLimits::default() };
    let server_host = host(limits);
    let server = server_host.serve();
    let service = &server.service;
    server.run(async {
        let outcomes = storm(service, 0, 20).await;
        assert_eq!((outcomes["made"], outcomes["limit_reached"]), (4, 16), "{outcomes:?}");
        clear(service).await;
        service.vms.create(named("web")).await.unwrap();
        // All children, or none.
        let refused = service.branches.fork(&vm("web"), forks(4, "child-{n}")).await.unwrap_err();
        let ServiceError::NoneLeft { what: "memory_mib", asked, free, .. } = refused else {
            panic!("{refused}")
        };
        assert_eq!((asked, free), (4 * MEMORY, 3 * MEMORY + 10));
        assert_eq!(count(service), 1);
        service.branches.fork(&vm("web"), forks(2, "child-{n}")).await.unwrap();
        snap(service, "web", "good").await.unwrap();
        service.branches.restore("good", restored("fourth")).await.unwrap();
        assert_eq!(code(service.branches.restore("good", restored("fifth")).await), "limit_reached");
        server.engine.close().await;
    });
    drop(server);
    // What exists counts for the next server, and is served although the limit is lower now.
    let next = Host { limits: HostLimits { total_memory_mib: Some(MEMORY), ..limits }, ..server_host };
    let server = next.serve();
    server.run(async {
        assert_eq!(count(&server.service), 4);
        assert_eq!(code(server.service.vms.create(named("more")).await), "limit_reached");
        clear(&server.service).await;
        server.service.vms.create(named("more")).await.unwrap();
    });
}

#[test]
fn a_snapshot_is_proved_where_the_limits_leave_no_room_for_another_vm() {
    let limits = HostLimits { max_vms: 1, total_memory_mib: Some(MEMORY), ..HostLimits::default() };
    let host = Host { prove: true, ..host(limits) };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        snap(service, "dev", "one").await.unwrap();
        assert_eq!(count(service), 1, "what proved it is gone");
        assert_eq!(code(service.vms.create(named("second")).await), "too_many_vms");
    });
}
