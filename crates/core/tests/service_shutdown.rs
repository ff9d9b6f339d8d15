//! Shutdowns of guests: now, later, given up, and through a restart of the server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use std::time::Duration;

use microvm_core::{CreateRequest, ForkRequest, ServiceError, Services};
use microvm_driver_fake::{Fault, MemoryStore, Operation};
use microvm_ports::hypervisor::MachineExit;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{OperationName, Phase, StopReason, VmRef};
use support::{Host, code, named, until};

const MINUTE: Duration = Duration::from_secs(60);

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

fn phase(service: &Services) -> Phase {
    service.vms.get(&dev()).unwrap().record.phase()
}

fn planned(service: &Services) -> Option<i64> {
    service.vms.get(&dev()).unwrap().record.planned_shutdown.map(|planned| planned.at_ms())
}

#[test]
fn a_shutdown_without_a_delay_is_a_stop_and_twice_is_fine() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for _ in 0..2 {
            let stopped = service.vms.shutdown(&dev(), Duration::ZERO, false).await.unwrap();
            assert_eq!(stopped.record.phase(), Phase::Stopped);
        }
        assert_eq!(host.hypervisor.script().calls(Operation::Shutdown), 1, "the guest was asked");
        let later = service.vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        assert_eq!(later.record.planned_shutdown, None, "it is off already");
        let nobody = "nobody".parse().unwrap();
        assert_eq!(code(service.vms.shutdown(&nobody, MINUTE, false).await), "vm_not_found");
        let month = MINUTE * 60 * 24 * 31;
        assert_eq!(code(service.vms.shutdown(&dev(), month, false).await), "invalid_field");
    });
}

#[test]
fn a_planned_shutdown_comes_when_it_is_due_and_the_newest_one_counts() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let made = service.vms.create(named("dev")).await.unwrap().record;
        service.vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        let view = service.vms.shutdown(&dev(), MINUTE * 2, true).await.unwrap();
        assert_eq!(view.record.phase(), Phase::Running);
        assert_eq!(planned(service), Some(made.created_ms + 120_000));
        host.clock.advance(119_000);
        service.vms.pause(&dev()).await.unwrap();
        service.vms.resume(&dev()).await.unwrap();
        assert_eq!(planned(service), Some(made.created_ms + 120_000), "a pause changes nothing");
        host.clock.advance(1_000);
        until("it has stopped", || phase(service) == Phase::Stopped).await;
        let record = service.vms.get(&dev()).unwrap().record;
        assert_eq!((record.planned_shutdown, record.last_stop.unwrap().reason), (None, StopReason::User));
        assert_eq!(host.hypervisor.script().calls(Operation::Shutdown), 0, "by force");
    });
}

#[test]
fn a_start_or_another_end_gives_a_planned_shutdown_up() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let plan = async || service.vms.shutdown(&dev(), MINUTE, false).await;
        plan().await.unwrap();
        service.vms.start(&dev()).await.unwrap();
        assert_eq!(planned(service), None, "whoever starts it wants it to run");
        plan().await.unwrap();
        service.vms.restart(&dev(), false, None).await.unwrap();
        assert_eq!(planned(service), None, "it was stopped in between");
        plan().await.unwrap();
        service.vms.hibernate(&dev()).await.unwrap();
        service.vms.start(&dev()).await.unwrap();
        assert_eq!(planned(service), None, "it was hibernated in between");
        plan().await.unwrap();
        let one = ForkRequest { count: 1, ..ForkRequest::default() };
        let forked = service.branches.fork(&dev(), one).await.unwrap();
        assert_eq!(forked.vms[0].record.planned_shutdown, None, "a child has none");
        host.store.script().next(Operation::Update, Fault::Fail);
        assert_eq!(code(service.vms.start(&dev()).await), "state_failed");
        assert!(planned(service).is_some(), "what could not be given up is told and stays");
        service.vms.delete(&dev(), false).await.unwrap();
    });
}

#[test]
fn what_was_given_up_does_not_come_back_without_the_database() {
    let mut host = Host::new();
    let first = host.serve();
    first.run(async {
        let vms = &first.service.vms;
        vms.create(named("dev")).await.unwrap();
        vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        vms.rename(&dev(), "kept".parse().unwrap()).await.unwrap();
        vms.rename(&"kept".parse().unwrap(), "dev".parse().unwrap()).await.unwrap();
        vms.start(&dev()).await.unwrap();
    });
    drop(first);
    host.store = MemoryStore::default();
    let second = host.serve();
    assert_eq!(planned(&second.service), None);
    second.run(second.service.vms.shutdown(&dev(), MINUTE, false)).unwrap();
    drop(second);
    host.store = MemoryStore::default();
    assert!(planned(&host.serve().service).is_some(), "what is planned is not lost with it either");
}

#[test]
fn a_vm_that_hibernates_for_being_idle_is_shut_down_when_it_is_used_again() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let limits = Limits { hibernate_seconds: Some(30), ..Limits::default() };
        let request = CreateRequest { vm: NewVm { limits, ..NewVm::default() }, ..named("dev") };
        service.vms.create(request).await.unwrap();
        service.vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        host.clock.advance(30_000);
        until("it hibernates", || phase(service) == Phase::Hibernated).await;
        assert!(planned(service).is_some());
        host.clock.advance(60_000);
        // Its time is over: whoever wakes it may have its guest for a moment, or find it stopping.
        match service.vms.guest(&dev(), OperationName::GUEST_EXEC).await {
            Ok(_) | Err(ServiceError::NotRunning(Phase::Stopping | Phase::Stopped)) => {}
            Err(error) => panic!("{error:?}"),
        }
        until("it has stopped", || phase(service) == Phase::Stopped).await;
        assert_eq!(planned(service), None);
    });
}

#[test]
fn a_guest_gets_around_no_planned_shutdown_by_a_reset() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let made = service.vms.create(named("dev")).await.unwrap().record;
        service.vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        let launches = host.hypervisor.script().calls(Operation::Launch);
        assert!(host.hypervisor.end(&made.id, MachineExit::GuestReset));
        let again = || host.hypervisor.script().calls(Operation::Launch) > launches;
        until("it runs again", || again() && phase(service) == Phase::Running).await;
        assert_eq!(planned(service), Some(made.created_ms + 60_000));
        host.clock.advance(60_000);
        until("it has stopped", || phase(service) == Phase::Stopped).await;
        assert_eq!(planned(service), None);
    });
}

#[test]
fn the_next_server_carries_a_planned_shutdown_out_also_if_it_was_due_meanwhile() {
    for away in [Duration::ZERO, MINUTE * 5] {
        let host = Host::new();
        let first = host.serve();
        first.run(async {
            first.service.vms.create(named("dev")).await.unwrap();
            first.service.vms.shutdown(&dev(), MINUTE, false).await.unwrap();
        });
        drop(first);
        let away_ms = i64::try_from(away.as_millis()).unwrap();
        host.clock.advance(away_ms);
        let second = host.serve();
        second.run(async {
            if away.is_zero() {
                assert!(planned(&second.service).is_some());
                host.clock.advance(60_000);
            }
            until("it has stopped", || phase(&second.service) == Phase::Stopped).await;
        });
    }
}
