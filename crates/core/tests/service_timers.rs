//! Whatever core does later or again goes by the clock of its ports: each of these would take minutes of real time.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;

use microvm_core::{CreateRequest, ForkRequest, PoolRequest};
use microvm_driver_fake::{Fault, FrozenClock, Operation};
use microvm_ports::guest::CloseReason;
use microvm_types::template::Overrides;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{Phase, VmRef};
use support::{Host, named, until};

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

/// Moves the clock by half a minute at each look.
async fn moved_until(clock: &FrozenClock, what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || {
        clock.advance(30_000);
        holds()
    })
    .await;
}

#[test]
fn an_agent_is_tried_again_when_the_clock_says_so() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let record = service.vms.create(named("dev")).await.unwrap().record;
        let script = host.hypervisor.script();
        for _ in 0..12 {
            script.next(Operation::Connect, Fault::Fail);
        }
        let before = script.calls(Operation::Connect);
        assert!(host.hypervisor.close_channel(&record.id, CloseReason::EndOfStream));
        // 0 + 1 + 2 + 4 + 8 + 16 + 6 times 30 seconds.
        moved_until(&host.clock, "it answers", || {
            script.calls(Operation::Connect) >= before + 13
                && service.vms.get(&dev()).unwrap().unreachable.is_none()
        })
        .await;
    });
}

#[test]
fn a_pool_is_filled_again_when_the_clock_says_so() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("golden-maker")).await.unwrap();
        for _ in 0..7 {
            host.hypervisor.script().next(Operation::Exec, Fault::Fail);
        }
        let request = PoolRequest {
            name: "py".parse().unwrap(),
            template: None,
            overrides: Overrides::default(),
            min: 1,
            max: 1,
            max_age_seconds: None,
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        service.pools.create(request).await.unwrap();
        // 1 + 2 + 4 + 8 + 16 + 32 + 32 seconds.
        moved_until(&host.clock, "a VM waits", || service.pools.get("py").unwrap().waiting == 1).await;
    });
}

#[test]
fn a_limit_that_could_not_be_carried_out_is_looked_at_again_when_the_clock_says_so() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let limits = Limits { idle_seconds: Some(60), ..Limits::default() };
        let request = CreateRequest { vm: NewVm { limits, ..NewVm::default() }, ..named("dev") };
        service.vms.create(request).await.unwrap();
        for _ in 0..4 {
            host.hypervisor.script().next(Operation::Processes, Fault::Fail);
        }
        moved_until(&host.clock, "it is stopped", || {
            service.vms.get(&dev()).unwrap().record.phase() == Phase::Stopped
        })
        .await;
        assert_eq!(host.hypervisor.script().calls(Operation::Processes), 5);
    });
}

#[test]
fn a_standby_vmm_waits_as_long_as_the_clock_says() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        service.branches.fork(&dev(), ForkRequest { count: 1, ..ForkRequest::default() }).await.unwrap();
        let waiting = || service.host.standby_vmms().unwrap();
        until("a VMM waits", || waiting() > 0).await;
        moved_until(&host.clock, "none waits after five minutes", || waiting() == 0).await;
    });
}
